//! A transformer encoder in floats, simulated at W8A8, and on integer codes; and its calibration.
//!
//! Four layers before-normed, width 256, four heads, feed-forward width 1024 with ReLU, eight sequences of 128: 7.0 GFLOP a
//! forward, 94 quantizers (weights of linear layers per channel and symmetric, those of normalization per tensor, every output
//! per tensor and asymmetric; biases stay float). `products` is what the machine's matrix product needs for the same shapes
//! alone: the least that a float forward can take.
//!
//! `cargo bench -p fastforward-rs --bench encoder` runs single-threaded; `FF_BENCH_THREADS=2` sets the threads. The allocator is
//! that of the program `fastforward`.

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use divan::Bencher;
use fastforward::flags;
use fastforward::nn::{Add, Layer, LayerNorm, Linear, ReLU, functional as F};
use fastforward::quantization::quant_init::{InitializeOptions, QuantizationConfig};
use fastforward::quantization::{
    Granularity, LinearQuantizerConfig, QuantizerSlot, disable_quantization,
};
use fastforward::range_setting::{EstimationOptions, EstimatorConfig, estimate_ranges};
use fastforward::tensor::{Result, Value, float};
use fastforward::{Module, module};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let threads = std::env::var("FF_BENCH_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    // candle's matrix product asks these variables, not the pool, how many threads it may use.
    for name in ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"] {
        if std::env::var(name).ok().as_deref() != Some(&format!("{threads}")) {
            return run_again(threads);
        }
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .expect("no pool was started before");
    divan::main();
}

/// The same bench in a process whose variables are set from the beginning.
fn run_again(threads: usize) {
    let program = std::env::current_exe().expect("a bench knows its file");
    let status = std::process::Command::new(program)
        .args(std::env::args_os().skip(1))
        .env("RAYON_NUM_THREADS", threads.to_string())
        .env("CANDLE_NUM_THREADS", threads.to_string())
        .status()
        .expect("the same file runs again");
    std::process::exit(status.code().unwrap_or(1));
}

const BATCH: usize = 8;
const LENGTH: usize = 128;
const WIDTH: usize = 256;
const HEADS: usize = 4;
const HIDDEN: usize = 1024;
const LAYERS: usize = 4;
const BATCHES: usize = 16;

/// Self-attention with a slot after each step.
#[derive(Module, Debug)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    scores_quantizer: QuantizerSlot,
    scaled_quantizer: QuantizerSlot,
    weights_quantizer: QuantizerSlot,
    found_quantizer: QuantizerSlot,
}

impl Attention {
    fn new(vb: &VarBuilder<'_>) -> Result<Self> {
        let linear = |name: &str| Linear::new(WIDTH, WIDTH, true, vb.pp(name));
        let [scores_quantizer, scaled_quantizer, weights_quantizer, found_quantizer] =
            std::array::from_fn(|_| QuantizerSlot::output());
        let (query, key, value, out) =
            (linear("query")?, linear("key")?, linear("value")?, linear("out")?);
        Ok(Self {
            query,
            key,
            value,
            out,
            scores_quantizer,
            scaled_quantizer,
            weights_quantizer,
            found_quantizer,
        })
    }

    fn forward(&self, x: &Value) -> Result<Value> {
        let split = |x: Value| x.reshape(&[BATCH, LENGTH, HEADS, WIDTH / HEADS])?.transpose(1, 2);
        let query = split(self.query.forward(x)?)?;
        let key = split(self.key.forward(x)?)?;
        let value = split(self.value.forward(x)?)?;
        let scores = F::matmul(&query, &key.transpose(-2, -1)?, &self.scores_quantizer)?;
        let factor = 1.0 / ((WIDTH / HEADS) as f64).sqrt();
        let scaled = F::mul(&scores, factor, &self.scaled_quantizer)?;
        let weights = F::softmax(&scaled, -1, None, &self.weights_quantizer)?;
        let found = F::matmul(&weights, &value, &self.found_quantizer)?;
        self.out.forward(&found.transpose(1, 2)?.reshape(&[BATCH, LENGTH, WIDTH])?)
    }
}

#[derive(Module, Debug)]
struct Block {
    attention_norm: LayerNorm,
    attention: Attention,
    attention_add: Add,
    feed_forward_norm: LayerNorm,
    up: Linear,
    activation: ReLU,
    down: Linear,
    feed_forward_add: Add,
}

impl Block {
    fn new(vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            attention_norm: LayerNorm::new(&[WIDTH], 1e-5, true, vb.pp("attention_norm"))?,
            attention: Attention::new(&vb.pp("attention"))?,
            attention_add: Add::new(),
            feed_forward_norm: LayerNorm::new(&[WIDTH], 1e-5, true, vb.pp("feed_forward_norm"))?,
            up: Linear::new(WIDTH, HIDDEN, true, vb.pp("up"))?,
            activation: ReLU::new(),
            down: Linear::new(HIDDEN, WIDTH, true, vb.pp("down"))?,
            feed_forward_add: Add::new(),
        })
    }

    fn forward(&self, x: &Value) -> Result<Value> {
        let found = self.attention.forward(&self.attention_norm.forward(x)?)?;
        let x = self.attention_add.forward(x, &found)?;
        let up = self.up.forward(&self.feed_forward_norm.forward(&x)?)?;
        let down = self.down.forward(&self.activation.forward(&up)?)?;
        self.feed_forward_add.forward(&x, &down)
    }
}

#[derive(Module, Debug)]
struct Encoder {
    layers: Vec<Block>,
    norm: LayerNorm,
}

impl Encoder {
    fn new() -> Result<Self> {
        let weights = VarMap::new();
        let vb = VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu);
        let layers = (0..LAYERS).map(|i| Block::new(&vb.pp("layers").pp(i)));
        let model = Self {
            layers: layers.collect::<Result<_>>()?,
            norm: LayerNorm::new(&[WIDTH], 1e-5, true, vb.pp("norm"))?,
        };
        // The same weights in every run: candle's initial ones have no seed.
        let mut vars: Vec<_> =
            weights.data().lock().expect("nobody panicked").clone().into_iter().collect();
        vars.sort_by(|a, b| a.0.cmp(&b.0));
        for (seed, (name, var)) in vars.iter().enumerate() {
            let (mean, bound) = match (name.contains("norm"), name.ends_with("weight")) {
                (true, true) => (1.0, 0.2),
                (true, false) => (0.0, 0.2),
                _ => (0.0, 1.5 / (*var.dims().last().unwrap_or(&1) as f32).sqrt()),
            };
            var.set(&data(var.dims(), seed as u64 + 100, mean, bound))?;
        }
        Ok(model)
    }

    /// The encoder with quantizers whose ranges are set from the first batch.
    fn quantized() -> Result<Self> {
        let model = Self::unset()?;
        let options = EstimationOptions { disable_quantization: true, ..Default::default() };
        let estimation = estimate_ranges(&model, EstimatorConfig::running_minmax(), options)?;
        let _lenient = flags::strict_quantization(false);
        let _constants = flags::inference();
        model.forward(&input(0))?;
        estimation.finish()?;
        Ok(model)
    }

    /// The encoder with quantizers that have no ranges yet.
    fn unset() -> Result<Self> {
        let model = Self::new()?;
        let weight = LinearQuantizerConfig::new(8);
        let per_channel = weight.clone().with_granularity(Granularity::per_channel(0));
        let output = LinearQuantizerConfig::new(8).asymmetric();
        let mut config = QuantizationConfig::for_model(&model);
        config.add_rule("**/[cls:Linear]/[quantizer:parameter/weight]", per_channel)?;
        config.add_rule("**/[cls:LayerNorm]/[quantizer:parameter/weight]", weight)?;
        config.add_rule("**/[quantizer:activation/output]", output)?;
        let done = config.initialize(&model, InitializeOptions::default())?;
        done.resolution.check()?;
        let filled =
            module::named_slots(&model).iter().filter(|entry| !entry.slot.is_stub()).count();
        assert_eq!(filled, 94, "weights and outputs of every operator");
        Ok(model)
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = Value::from(x);
        for layer in &self.layers {
            x = layer.forward(&x)?;
        }
        self.norm.forward(&x)?.dequantize()
    }
}

/// Values around `mean`, roughly normal, of deviation about half of `bound`; the same for the same seed.
fn data(dims: &[usize], seed: u64, mean: f32, bound: f32) -> Tensor {
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let n: usize = dims.iter().product();
    let values = (0..n).map(|_| mean + bound * 0.5 * (next() + next() + next())).collect();
    Tensor::from_vec(values, dims, &Device::Cpu).expect("as many values as elements")
}

fn input(batch: u64) -> Tensor {
    data(&[BATCH, LENGTH, WIDTH], 1000 + batch, 0.0, 2.0)
}

/// One forward. The caller holds the guard of inference, one for all forwards as in an evaluation: what is kept is kept for as
/// long as it lives.
fn forward(bencher: Bencher, model: &Encoder) {
    let x = input(0);
    let _lenient = flags::strict_quantization(false);
    bencher.bench_local(|| model.forward(&x).expect("the shapes fit"));
}

#[divan::bench]
fn float(bencher: Bencher) {
    let _constants = flags::inference();
    forward(bencher, &Encoder::new().expect("the encoder is sound"));
}

/// The quantized model with its quantizers switched off: what slots and guards cost.
#[divan::bench]
fn disabled(bencher: Bencher) {
    let _constants = flags::inference();
    let model = Encoder::quantized().expect("the rules fit");
    let _off = disable_quantization(&model);
    forward(bencher, &model);
}

#[divan::bench]
fn simulated(bencher: Bencher) {
    let _constants = flags::inference();
    let _simulated = flags::integer_execution_mode(false);
    forward(bencher, &Encoder::quantized().expect("the rules fit"));
}

#[divan::bench]
fn integer(bencher: Bencher) {
    let _constants = flags::inference();
    let _integer = flags::integer_execution_mode(true);
    forward(bencher, &Encoder::quantized().expect("the rules fit"));
}

/// The products of a forward alone.
#[divan::bench]
fn products(bencher: Bencher) {
    let x = input(0).reshape((BATCH * LENGTH, WIDTH)).expect("as many elements");
    let hidden = data(&[BATCH * LENGTH, HIDDEN], 1, 0.0, 1.0);
    let square = data(&[WIDTH, WIDTH], 2, 0.0, 0.1);
    let (up, down) = (data(&[HIDDEN, WIDTH], 3, 0.0, 0.1), data(&[WIDTH, HIDDEN], 4, 0.0, 0.1));
    let heads = |n: usize, m: usize, seed| data(&[BATCH * HEADS, n, m], seed, 0.0, 1.0);
    let head = WIDTH / HEADS;
    let (query, key) = (heads(LENGTH, head, 5), heads(head, LENGTH, 6));
    let (weights, value) = (heads(LENGTH, LENGTH, 7), heads(LENGTH, head, 8));
    let product = |a: &Tensor, b: &Tensor| float::matmul(a, b).expect("the shapes fit");
    bencher.bench_local(|| {
        for _ in 0..LAYERS {
            for _ in 0..4 {
                divan::black_box(product(&x, &square.t().expect("a matrix")));
            }
            divan::black_box(product(&query, &key));
            divan::black_box(product(&weights, &value));
            divan::black_box(product(&x, &up.t().expect("a matrix")));
            divan::black_box(product(&hidden, &down.t().expect("a matrix")));
        }
    });
}

/// Sixteen batches: in floats, and with every quantizer's range followed by running minimum and maximum.
mod batches {
    use super::*;

    fn inputs() -> Vec<Tensor> {
        (0..BATCHES as u64).map(input).collect()
    }

    #[divan::bench(sample_count = 5)]
    fn float(bencher: Bencher) {
        let (model, inputs) = (Encoder::new().expect("the encoder is sound"), inputs());
        bencher.bench_local(|| {
            let _lenient = flags::strict_quantization(false);
            let _constants = flags::inference();
            for x in &inputs {
                divan::black_box(model.forward(x).expect("the shapes fit"));
            }
        });
    }

    fn calibrate(bencher: Bencher, options: fn() -> EstimationOptions) {
        let (model, inputs) = (Encoder::unset().expect("the rules fit"), inputs());
        let _simulated = flags::integer_execution_mode(false);
        bencher.bench_local(|| {
            let _lenient = flags::strict_quantization(false);
            let _constants = flags::inference();
            let estimation = estimate_ranges(&model, EstimatorConfig::running_minmax(), options())
                .expect("every quantizer has a range to set");
            for x in &inputs {
                divan::black_box(model.forward(x).expect("the shapes fit"));
            }
            estimation.finish().expect("every quantizer saw data")
        });
    }

    /// Ranges of float activations.
    #[divan::bench(sample_count = 5)]
    fn calibration(bencher: Bencher) {
        calibrate(bencher, || EstimationOptions {
            disable_quantization: true,
            ..Default::default()
        });
    }

    /// The default: each layer sees data that is quantized with the ranges so far.
    #[divan::bench(sample_count = 5)]
    fn calibration_quantizing(bencher: Bencher) {
        calibrate(bencher, EstimationOptions::default);
    }
}
