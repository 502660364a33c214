//! Algorithms that come before ranges: the same outputs from other parameters, or the reason why not.

use candle_core::{DType, Device, Tensor};
use fastforward::algorithms::{AlgorithmReport, Outputs, PrepareOptions, Target, prepare, targets};
use fastforward::config::QuantConfigFile;
use fastforward::flags;
use fastforward::module::Module;
use fastforward::nn::{
    Add, BatchNorm, Conv2d, Flatten, Layer, LayerNorm, Linear, MaxPool2d, ReLU, ReLU6, RmsNorm,
    Sequential,
};
use fastforward::quantization::QuantizerSlot;
use fastforward::quantization::quant_init::{InitializeOptions, model_context};
use fastforward::tensor::operator::functional;
use fastforward::tensor::{Apply, Result, Value, float};
use fastforward::{ErrorKind, Module as DeriveModule};

use crate::common::*;

fn sections(text: &str) -> QuantConfigFile {
    let text = format!("schema_version = 1\n{text}");
    QuantConfigFile::parse(&text, "quant.toml", ".".as_ref()).unwrap()
}

fn prepared<M: Module + Layer>(
    model: &M,
    text: &str,
    data: &[Tensor],
) -> Result<Vec<AlgorithmReport>> {
    let targets = targets(&sections(text), model)?;
    with(model, &targets, data, |model, x| model.forward_tensor(x))
}

fn with<M: Module, R: Outputs>(
    model: &M,
    targets: &[Target],
    data: &[Tensor],
    forward: impl Fn(&M, &Tensor) -> Result<R>,
) -> Result<Vec<AlgorithmReport>> {
    let _lenient = flags::strict_quantization(false);
    let options = PrepareOptions::default();
    prepare(
        model,
        targets,
        || data.iter().map(Ok),
        |model, x: &&Tensor| forward(model, x),
        &options,
    )
}

/// Rows of a matrix that differ by powers of four.
fn uneven(x: &Tensor) -> Tensor {
    let rows = x.dim(0).unwrap();
    let factors: Vec<f32> = (0..rows).map(|row| 4f32.powi(row as i32 % 4)).collect();
    let mut shape = vec![1; x.rank()];
    shape[0] = rows;
    x.broadcast_mul(&Tensor::from_vec(factors, shape, &Device::Cpu).unwrap()).unwrap()
}

fn linear(outputs: usize, inputs: usize, seed: usize) -> Linear {
    let bias = noise(&[outputs], seed + 100);
    Linear::from_tensors(uneven(&noise(&[outputs, inputs], seed)), Some(bias)).unwrap()
}

fn conv(shape: &[usize; 4], seed: usize) -> Conv2d {
    let bias = noise(&shape[..1], seed + 100);
    let weight = uneven(&noise(shape, seed));
    Conv2d::from_tensors(weight, Some(bias), Default::default()).unwrap()
}

const EQUALIZE: &str = "[[algorithm]]\ntype = \"equalize\"\n";

#[test]
fn equalized_networks_give_the_same_floats() {
    let model = Sequential::new()
        .add(conv(&[8, 4, 3, 3], 1))
        .add(ReLU::new())
        .add(MaxPool2d::new(float::MaxPool2d::new([2, 2])))
        .add(conv(&[6, 8, 2, 2], 2))
        .add(ReLU::new())
        .add(Flatten::default())
        .add(linear(10, 6, 3))
        .add(ReLU::new())
        .add(linear(3, 10, 4));
    let data = batches(2);
    let (before, old) = (outputs(&model, &data), weights(&model));
    let reports = prepared(&model, EQUALIZE, &data).unwrap();
    assert_eq!(outputs(&model, &data), before);
    assert_ne!(weights(&model), old);
    let names: Vec<&str> = reports[0].changes.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["0 -> 3", "3 -> 6", "6 -> 8"]);
    for change in &reports[0].changes {
        assert!(change.after.unwrap() < change.before, "{change:?}");
    }
    assert!(reports[0].kept.is_empty(), "{:?}", reports[0].kept); // the last one ends the chain
}

/// Layers with more than two axes, a pad, and axes that change places.
#[derive(DeriveModule)]
struct Sequence {
    first: Linear,
    second: Linear,
    third: Linear,
    norm: LayerNorm,
    head: Linear,
}

impl Layer for Sequence {
    /// `[n, l, 6]` to `[n, 4, l]`
    fn forward(&self, x: &Value) -> Result<Value> {
        let slot = None::<&QuantizerSlot>;
        let x = functional::relu(&self.first.forward(x)?, slot)?;
        let (n, l) = (x.dims()[0], x.dims()[1]);
        // There and back: the channels are the last axis again.
        let x = x.transpose(1, 2)?.permute(&[0, 2, 1])?.contiguous()?;
        let x = self.second.forward(&x)?.reshape(&[n * l, 8])?;
        let x = self.third.forward(&functional::leaky_relu(&x, 0.1, slot)?)?;
        let x = self.norm.forward(&x.reshape(&[n, l, 8])?)?;
        self.head.forward(&x)?.transpose(1, 2)
    }
}

fn sequence() -> Sequence {
    let scale = noise(&[8], 60).affine(0.5, 1.0).unwrap();
    Sequence {
        first: linear(8, 6, 51),
        second: linear(8, 8, 52),
        third: linear(8, 8, 53),
        norm: LayerNorm::from_tensors(&[8], Some(scale), Some(noise(&[8], 61)), 1e-5).unwrap(),
        head: linear(4, 8, 54),
    }
}

#[test]
fn factors_go_through_changes_of_shape_into_normalizations() {
    let (model, data) = (sequence(), [noise(&[3, 5, 6], 71), noise(&[3, 5, 6], 72)]);
    let before = outputs(&model, &data);
    let smooth = "[[algorithm]]\ntype = \"smooth\"\nalpha = 0.7\n";
    let reports = prepared(&model, &format!("{EQUALIZE}{smooth}"), &data).unwrap();
    assert_eq!(outputs(&model, &data), before);
    let names: Vec<&str> = reports[0].changes.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["first -> second", "second -> third"]);
    assert_eq!(
        reports[0].kept,
        ["`head`: its result `transpose_2` is returned by the graph"],
        "{:?}",
        reports[0].kept
    );
    // What the norm gives is what the head reads.
    assert!(reports[1].changes.iter().any(|one| one.name == "norm"), "{}", reports[1]);
}

#[test]
fn biases_move_to_the_next_layer() {
    let model = Sequential::new().add(linear(6, 5, 1)).add(ReLU::new()).add(linear(3, 6, 2));
    let far_up = Tensor::full(200f32, 6, &Device::Cpu).unwrap();
    let first: &dyn std::any::Any = model.get("0").unwrap();
    let first = first.downcast_ref::<Linear>().unwrap();
    first.bias.as_ref().unwrap().set(&far_up).unwrap();
    let data = [noise(&[8, 5], 3), noise(&[8, 5], 4)];
    let before = outputs(&model, &data);
    for amount in ["minimum", "three_sigma"] {
        let text = format!("[[algorithm]]\ntype = \"absorb_bias\"\namount = \"{amount}\"\n");
        let report = prepared(&model, &text, &data).unwrap().remove(0);
        let found = [report.changes.len(), report.kept.len()];
        // The second time nothing is left to move.
        assert_eq!(found, if amount == "minimum" { [1, 1] } else { [0, 2] }, "{report}");
        let after = outputs(&model, &data);
        assert!(share(&before, &after) < 1e-9, "{amount}");
    }
    assert!(
        first.bias.as_ref().unwrap().tensor().to_vec1::<f32>().unwrap().iter().all(|&b| b < 199.0)
    );
}

#[test]
fn what_follows_a_change_of_outputs_is_compared_with_these() {
    let model = Sequential::new().add(linear(6, 5, 1)).add(ReLU::new()).add(linear(3, 6, 2));
    let first: &dyn std::any::Any = model.get("0").unwrap();
    let first = first.downcast_ref::<Linear>().unwrap();
    first.bias.as_ref().unwrap().set(&Tensor::full(400f32, 6, &Device::Cpu).unwrap()).unwrap();
    // One row far below the others, which three standard deviations leave out.
    let far = (noise(&[1, 5], 5) * 40.0).unwrap();
    let data = [Tensor::cat(&[noise(&[200, 5], 3), far], 0).unwrap()];
    let before = outputs(&model, &data);
    let absorb = "[[algorithm]]\ntype = \"absorb_bias\"\namount = \"three_sigma\"\n";
    let reports = prepared(&model, &format!("{absorb}{EQUALIZE}"), &data).unwrap();
    assert_eq!([reports[0].changes.len(), reports[1].changes.len()], [1, 1]);
    assert!(share(&before, &outputs(&model, &data)) > 1e-5);
}

#[test]
fn awq_asks_rules_and_data() {
    let text = "[[rule]]
query = \"head/weight_quantizer\"
quantizer = { type = \"linear\", num_bits = 3, granularity = \"per_output_channel\" }
[[algorithm]]
type = \"awq\"
";
    // A channel that matters: large in the data, small in the weight that reads it.
    let model = sequence();
    let large = [1.0f32, 1.0, 30.0, 1.0, 1.0, 1.0, 25.0, 1.0];
    model.norm.weight.as_ref().unwrap().set(&Tensor::new(&large, &Device::Cpu).unwrap()).unwrap();
    let config = sections(text);
    let rules = config.quantization_config(model_context(&model)).unwrap();
    rules.initialize(&model, InitializeOptions::default()).unwrap();
    let data = [noise(&[3, 5, 6], 71), noise(&[3, 5, 6], 72)];
    let float = |model: &Sequence| {
        let _off = fastforward::quantization::disable_quantization(model);
        outputs(model, &data)
    };
    let before = float(&model);
    let targets = targets(&config, &model).unwrap();
    let report =
        with(&model, &targets, &data, |model, x| model.forward_tensor(x)).unwrap().remove(0);
    assert_eq!(float(&model), before);
    assert_eq!(report.changes.len(), 1, "{report}");
    assert_eq!(report.changes[0].name, "head");
    assert!(report.changes[0].after.unwrap() < 0.8 * report.changes[0].before, "{report}");
    assert!(report.moment_bytes.unwrap() > 0);
}

/// A block around a sum that operators do not see.
#[derive(DeriveModule)]
struct Hidden {
    first: Linear,
    second: Linear,
    hides: bool,
}

impl Layer for Hidden {
    fn forward(&self, x: &Value) -> Result<Value> {
        let x = self.first.forward(x)?;
        let y = self.second.forward(&functional::relu(&x, None::<&QuantizerSlot>)?)?;
        match self.hides {
            // Read by an operator, and by code beside it.
            true => Ok((x.dequantize()? + y.dequantize()?)?.into()),
            false => functional::add(&y, &x, 1.0, None::<&QuantizerSlot>),
        }
    }
}

#[test]
fn what_operators_do_not_see_is_found_by_the_outputs() {
    let hidden = |hides| Hidden { first: linear(6, 6, 1), second: linear(6, 6, 2), hides };
    let data = [noise(&[8, 6], 3)];
    let model = hidden(true);
    let old = weights(&model);
    for text in [
        EQUALIZE,
        "[[algorithm]]\ntype = \"equalize\"\nrounding = \"unrounded\"\n",
        "[[algorithm]]\ntype = \"smooth\"\n",
        "[[algorithm]]\ntype = \"absorb_bias\"\namount = \"three_sigma\"\n",
    ] {
        let error = prepared(&model, text, &data).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        let message = error.to_string();
        assert!(
            message.starts_with("quant.toml:2: the outputs of the first batch change by"),
            "{message}"
        );
        assert_eq!(weights(&model), old);
    }
    // An operator says so beforehand.
    let report = prepared(&hidden(false), EQUALIZE, &data).unwrap().remove(0);
    assert!(report.changes.is_empty());
    assert_eq!(report.kept[0], "`first`: its result `first` is read 2 times");
}

#[test]
fn values_that_only_code_reads_are_kept() {
    let model = Sequential::new().add(linear(6, 6, 1)).add(linear(6, 6, 2));
    let data = [noise(&[8, 6], 3)];
    let layers: Vec<_> = ["0", "1"].into_iter().map(|at| model.get(at).unwrap()).collect();
    let targets = targets(&sections(EQUALIZE), &model).unwrap();
    let report = with(&model, &targets, &data, |_, x| {
        let x = layers[0].forward_tensor(x)?.dequantize()?;
        layers[1].forward_tensor(&(x * 2.0)?)
    });
    let report = report.unwrap().remove(0);
    assert!(report.changes.is_empty());
    let reason = "`0`: `code behind` (code) is not an operator of the standard set";
    assert_eq!(report.kept[0], reason);
}

/// A bound, and a layer that is called twice.
#[derive(DeriveModule)]
struct Twice {
    first: Linear,
    clip: ReLU6,
    shared: Linear,
}

impl Layer for Twice {
    fn forward(&self, x: &Value) -> Result<Value> {
        let x = self.shared.forward(&self.clip.forward(&self.first.forward(x)?)?)?;
        self.shared.forward(&functional::relu(&x, None::<&QuantizerSlot>)?)
    }
}

#[test]
fn clips_and_layers_that_are_called_twice_stay() {
    let model = Twice { first: linear(6, 6, 2), clip: ReLU6::new(), shared: linear(6, 6, 1) };
    let report = prepared(&model, EQUALIZE, &[noise(&[8, 6], 3)]).unwrap().remove(0);
    assert!(report.changes.is_empty(), "{report}");
    let reasons = [
        "`first`: the weight `shared.weight` is used elsewhere too",
        "`shared`: the weight `shared.weight` is used elsewhere too",
        "`shared_2`: its result `shared_2` is returned by the graph",
    ];
    assert_eq!(report.kept, reasons);
    let (one, other) = (linear(6, 6, 3), linear(6, 6, 4));
    let model = Sequential::new().add(one).add(ReLU6::new()).add(other);
    let report = prepared(&model, EQUALIZE, &[noise(&[8, 6], 3)]).unwrap().remove(0);
    assert!(report.kept[0].starts_with("`0`: `1` clips all channels at 6"), "{report}");
}

#[test]
fn halves_keep_what_halves_can() {
    let half = |x: &Tensor| x.to_dtype(DType::BF16).unwrap();
    let layer = |seed| {
        let one = linear(6, 6, seed);
        let bias = half(&one.bias.as_ref().unwrap().tensor());
        Linear::from_tensors(half(&one.weight.tensor()), Some(bias)).unwrap()
    };
    let model = Sequential::new().add(layer(1)).add(ReLU::new()).add(layer(2));
    let data = [half(&noise(&[8, 6], 3))];
    let run = || {
        let _lenient = flags::strict_quantization(false);
        let y = model.forward_tensor(&data[0]).unwrap().dequantize().unwrap();
        numbers(&y.to_dtype(DType::F32).unwrap())
    };
    let before = run();
    let report = prepared(&model, EQUALIZE, &data).unwrap().remove(0);
    assert_eq!(report.changes.len(), 1, "{report}");
    assert_eq!(run(), before);
}

#[test]
fn everything_that_cannot_work_is_said_at_once() {
    let (model, data) = (network(), batches(1));
    quantize(&model, &configuration(3, true, ""), &data);
    let text = "[[algorithm]]
type = \"gptq\"
[[algorithm]]
type = \"equalize\"
relu6 = \"relu\"
[[algorithm]]
type = \"awq\"
query = \"9\"
";
    let error = prepared(&model, text, &data).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rule);
    let message = error.to_string();
    for part in [
        "quant.toml:2: `gptq` works on a network with ranges; hand it to `tune`",
        "quant.toml:4: `relu6` puts other operators into a graph",
        "quant.toml:7: `9` matches nothing",
        "ranges were set before, which no longer fit afterwards: `0.input_quantizer`, `0.weight_quantizer`",
    ] {
        assert!(message.contains(part), "`{part}` is missing in\n{message}");
    }
    let bare = Sequential::new().add(linear(3, 3, 1));
    let error = prepared(&bare, "[[algorithm]]\ntype = \"awq\"\n", &data).unwrap_err();
    assert!(
        error.to_string().contains("none of them has a quantizer; rules come before"),
        "{error}"
    );
    let error = prepared(&bare, EQUALIZE, &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoData);
}

#[test]
fn forwards_have_to_do_the_same_for_every_batch() {
    let model = Sequential::new().add(linear(6, 6, 1)).add(ReLU::new()).add(linear(6, 6, 2));
    let data = [noise(&[8, 6], 3), noise(&[4, 6], 4)];
    let text = "[[algorithm]]\ntype = \"smooth\"\n";
    let targets = targets(&sections(text), &model).unwrap();
    let old = weights(&model);
    let error = with(&model, &targets, &data, |model, x| match x.dim(0)? {
        8 => model.forward_tensor(x),
        _ => Ok(x.into()),
    });
    let message = error.unwrap_err().to_string();
    assert!(message.contains("not that of the first one: it calls 0 operators"), "{message}");
    assert_eq!(weights(&model), old);
}

/// Where normalization stands in a vision network.
#[derive(DeriveModule)]
struct Normalized {
    conv: Conv2d,
    norm: BatchNorm,
    add: Add,
    rms: RmsNorm,
    head: Linear,
}

impl Layer for Normalized {
    fn forward(&self, x: &Value) -> Result<Value> {
        let slot = None::<&QuantizerSlot>;
        let x = self.norm.forward(&self.conv.forward(x)?)?;
        let pooled = functional::mean(&functional::mean(&x, Some(-1), slot)?, Some(-1), slot)?;
        let x = self.add.forward(&pooled, &pooled)?;
        self.head.forward(&self.rms.forward(&x)?)
    }
}

#[test]
fn whatever_a_model_has_in_it_its_outputs_stay() {
    let ones = || Tensor::ones(8, DType::F32, &Device::Cpu).unwrap();
    let model = Normalized {
        conv: conv(&[8, 4, 3, 3], 1),
        norm: BatchNorm::from_tensors(
            Some(ones()),
            Some(noise(&[8], 8)),
            noise(&[8], 7),
            ones(),
            Default::default(),
        )
        .unwrap(),
        add: Add::new(),
        rms: RmsNorm::from_tensors(&[8], Some(ones()), None).unwrap(),
        head: linear(4, 8, 2),
    };
    let data = batches(2);
    let before = outputs(&model, &data);
    let all = format!(
        "{EQUALIZE}[[algorithm]]\ntype = \"absorb_bias\"\n[[algorithm]]\ntype = \"smooth\"\n"
    );
    let reports = prepared(&model, &all, &data).unwrap();
    assert_eq!(outputs(&model, &data), before);
    assert_eq!(reports[2].changes.len(), 1, "{}", reports[2]);
}

/// Values that meet: in a sum, and side by side.
#[derive(DeriveModule)]
struct Meeting {
    left: Linear,
    right: Linear,
    add: Add,
    output_quantizer: QuantizerSlot,
    lonely_quantizer: QuantizerSlot,
}

impl Layer for Meeting {
    fn forward(&self, x: &Value) -> Result<Value> {
        let (left, right) = (self.left.forward(x)?, self.right.forward(x)?);
        let sum = self.add.forward(&left, &right)?;
        let both = functional::cat(&[left, sum], -1, &self.output_quantizer)?;
        self.lonely_quantizer.apply(&both)
    }
}

#[test]
fn values_that_meet_get_one_range() {
    let model = Meeting {
        left: linear(6, 6, 1),
        right: linear(6, 6, 2),
        add: Add::new(),
        output_quantizer: QuantizerSlot::output(),
        lonely_quantizer: QuantizerSlot::input(),
    };
    let data = [noise(&[8, 6], 3)];
    let rules = "schema_version = 1
[[rule]]
query = \"**/[quantizer:activation]\"
quantizer = { type = \"linear\", num_bits = 8, symmetric = false }
[[algorithm]]
type = \"join_ranges\"
additions = true
";
    let config = QuantConfigFile::parse(rules, "quant.toml", ".".as_ref()).unwrap();
    let targets = quantize(&model, &config, &data);
    let range = |slot: &QuantizerSlot| {
        let quantizer = slot.quantizer();
        let (min, max) = quantizer.as_range_settable().unwrap().quantization_range().unwrap();
        (min[0], max[0])
    };
    let (left, add) = (range(&model.left.output_quantizer), range(&model.add.output_quantizer));
    assert_ne!(left, add);
    let report = run(&model, &targets, &data).unwrap().remove(0);
    assert_eq!(report.changes.len(), 2, "{report}");
    // The operands of the sum, by the slots at the sum; those of the concatenation, by the slots of what computes them.
    assert_eq!(range(&model.add.input_quantizer), range(&model.add.input_quantizer_1));
    let common = (left.0.min(add.0), left.1.max(add.1));
    let joined = range(&model.left.output_quantizer);
    assert_eq!(joined, range(&model.add.output_quantizer));
    assert!(joined.0 <= common.0 && joined.1 >= common.1, "{joined:?} {common:?}");
    assert_eq!(report.kept, ["`lonely_quantizer`: the forward shows no operator that it is at"]);
}
