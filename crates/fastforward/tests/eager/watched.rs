//! What estimators learn while results are made is what they learn by looking at the results, and the data is the same.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use fastforward::module::SlotEntry;
use fastforward::nn::{Param, functional as F};
use fastforward::quantization::quantizer::RangeSettable;
use fastforward::quantization::{
    Granularity, LinearQuantizer, LinearQuantizerConfig, QuantizerSlot, disable_quantization,
};
use fastforward::range_setting::{
    EstimationOptions, EstimationReport, EstimatorConfig, EstimatorFactory, RangeEstimator,
    RunningMinMax, SmoothedMinMax, TileRanges, estimate_ranges,
};
use fastforward::tensor::{Result, Value};
use fastforward::{ArrayView, Error, flags};

use super::{quantized, tensor, values};

/// An estimator that insists on seeing the data.
#[derive(Debug)]
struct Looking(Box<dyn RangeEstimator>);

impl RangeEstimator for Looking {
    fn name(&self) -> &str {
        self.0.name()
    }
    fn observe(
        &mut self,
        x: ArrayView<'_>,
        quantizer: &dyn RangeSettable,
    ) -> std::result::Result<(), Error> {
        self.0.observe(x, quantizer)
    }
    fn range(&self) -> Option<TileRanges> {
        self.0.range()
    }
    fn merge(&mut self, later: &dyn RangeEstimator) -> std::result::Result<(), Error> {
        self.0.merge(later)
    }
    fn fork(&self) -> Box<dyn RangeEstimator> {
        Box::new(Looking(self.0.fork()))
    }
}

fn estimator(smoothed: bool) -> Box<dyn RangeEstimator> {
    match smoothed {
        true => Box::new(SmoothedMinMax::new(0.3).unwrap()),
        false => Box::new(RunningMinMax::new()),
    }
}

fn factory(smoothed: bool, looking: bool) -> EstimatorFactory {
    EstimatorFactory::new(move |_| {
        let estimator = estimator(smoothed);
        Ok(if looking { Box::new(Looking(estimator)) } else { estimator })
    })
}

fn slot(granularity: Granularity) -> QuantizerSlot {
    let config = LinearQuantizerConfig::new(8).asymmetric().with_granularity(granularity);
    let slot = QuantizerSlot::output();
    slot.replace(Arc::new(LinearQuantizer::new(config).unwrap()));
    slot
}

fn entries(slot: &QuantizerSlot) -> Vec<SlotEntry> {
    vec![SlotEntry { names: vec!["model.y".into()], slot: slot.clone() }]
}

fn options(disable_quantization: bool) -> EstimationOptions {
    EstimationOptions { disable_quantization, ..Default::default() }
}

/// Runs `step(number, slot)` three times under an estimator: what came out, as bits, and the report.
fn calibrate(
    slot: &QuantizerSlot,
    estimators: EstimatorFactory,
    options: EstimationOptions,
    step: impl Fn(usize, &QuantizerSlot) -> Result<Value>,
) -> (Vec<std::result::Result<Vec<u32>, String>>, Option<EstimationReport>) {
    let guard = estimate_ranges(&entries(slot), estimators, options).unwrap();
    let outputs = (0..3).map(|number| match step(number, slot) {
        Ok(value) => {
            Ok(values(&value.dequantize().unwrap()).into_iter().map(f32::to_bits).collect())
        }
        Err(error) => Err(error.to_string()),
    });
    (outputs.collect(), guard.finish().ok())
}

#[track_caller]
fn check(name: &str, step: impl Fn(usize, &QuantizerSlot) -> Result<Value>) {
    let _lenient = flags::strict_quantization(false);
    for integer in [true, false] {
        let _mode = flags::integer_execution_mode(integer);
        for (smoothed, disabled) in [(false, false), (false, true), (true, false), (true, true)] {
            let run = |looking| {
                let slot = slot(Granularity::PerTensor);
                calibrate(&slot, factory(smoothed, looking), options(disabled), &step)
            };
            let (told, seen) = (run(false), run(true));
            assert_eq!(told.0, seen.0, "{name}: integers {integer}, disabled {disabled}");
            assert_eq!(told.1, seen.1, "{name}: integers {integer}, smoothed {smoothed}");
        }
    }
}

#[test]
fn estimators_learn_the_same_from_results_in_the_making() {
    for shape in [&[3, 5][..], &[2, 130, 300]] {
        let n = shape[shape.len() - 1];
        let x = |number: usize| Value::from(tensor(shape, number as u64 + 1));
        let other = Value::from(tensor(shape, 77));
        let (weight, bias) = (Value::from(tensor(&[n], 8)), Value::from(tensor(&[n], 9)));
        let matrix = Value::from(tensor(&[7, n], 4));
        let seven = Value::from(tensor(&[7], 5));
        check("relu", |i, to| F::relu(&x(i), to));
        check("cos", |i, to| F::cos(&x(i), to)); // not 0 at 0, with which blocks are filled up
        check("silu", |i, to| F::silu(&x(i), to));
        check("add", |i, to| F::add(&x(i), &other, 1.0, to));
        check("sub", |i, to| F::sub(&x(i), 0.7, 1.0, to));
        check("mul", |i, to| F::mul(&x(i), &other, to));
        check("div", |i, to| F::div(&x(i), 0.0, to)); // infinite
        check("softmax", |i, to| F::softmax(&x(i), -1, None, to));
        for bias in [None, Some(&bias)] {
            check("layer_norm", |i, to| {
                F::layer_norm(&x(i), Some(&weight), bias, vec![n], 1e-5, to)
            });
        }
        check("rms_norm", |i, to| F::rms_norm(&x(i), Some(&weight), vec![n], None, to));
        for bias in [None, Some(&seven)] {
            check("linear", |i, to| F::linear(&x(i), &matrix, bias, to));
        }
        // NaN in the second batch: the same error, and nothing is learned from it.
        let nan = Value::from((tensor(shape, 1) * f64::NAN).unwrap());
        check("relu of NaN", |i, to| F::relu(if i == 1 { &nan } else { &other }, to));
    }
    // Operands with codes: with integers on, their kernels go first.
    let x = Value::from(quantized(&tensor(&[40, 30], 1), 8, Granularity::PerTensor).unwrap());
    let weight = Value::from(quantized(&tensor(&[20, 30], 2), 8, Granularity::PerTensor).unwrap());
    let bias = Value::from(tensor(&[20], 3));
    check("linear of codes", |_, to| F::linear(&x, &weight, Some(&bias), to));
    check("relu of codes", |_, to| F::relu(&x, to));
}

#[test]
fn tiles_and_other_watchers_see_the_data() {
    let _lenient = flags::strict_quantization(false);
    let x = Value::from(tensor(&[4, 30], 1));
    let channels = slot(Granularity::per_channel(0));
    let step = |_, to: &QuantizerSlot| F::relu(&x, to);
    let (_, report) = calibrate(&channels, factory(false, false), options(false), step);
    assert_eq!(report.unwrap().slots[0].range.as_ref().unwrap().len(), 4);
    // A switch below the estimator, which knows nothing of ranges, still keeps quantization off.
    let one = slot(Granularity::PerTensor);
    let off = disable_quantization(&entries(&one));
    let (outputs, report) = calibrate(&one, factory(false, false), options(false), step);
    drop(off);
    let plain: Vec<u32> =
        values(&x.dequantize().unwrap()).iter().map(|x| x.max(0.0).to_bits()).collect();
    assert_eq!(outputs, vec![Ok(plain); 3]);
    assert_eq!(report.unwrap().slots[0].batches, 3);
}

#[test]
fn gradients_flow_through_watched_operators() {
    let _lenient = flags::strict_quantization(false);
    let x = candle_core::Var::from_tensor(&tensor(&[3, 5], 1)).unwrap();
    let to = slot(Granularity::PerTensor);
    let guard = estimate_ranges(&entries(&to), EstimatorConfig::running_minmax(), options(false));
    let y = F::relu(&Value::from(x.as_tensor()), &to).unwrap();
    drop(guard.unwrap());
    let gradients = y.dequantize().unwrap().sum_all().unwrap().backward().unwrap();
    let expected = values(&x).iter().map(|&x| f32::from(x > 0.0)).collect::<Vec<_>>();
    assert_eq!(values(gradients.get(&x).unwrap()), expected);
}

#[test]
fn a_weight_that_stays_the_same_is_looked_at_once_and_counted_each_time() {
    for (inference, granularity) in
        [(true, 0), (true, 1), (false, 0)].map(|(i, axis)| (i, Granularity::per_channel(axis)))
    {
        let weight = Param::new(tensor(&[3, 4], 1));
        let _constants = inference.then(flags::inference);
        let step = |number: usize, to: &QuantizerSlot| {
            if number == 2 {
                weight.set(&(tensor(&[3, 4], 1) * -3.0).unwrap()).unwrap();
            }
            weight.quantized(to)
        };
        for (smoothed, disabled) in [(false, false), (false, true), (true, false)] {
            let run = |looking| {
                weight.set(&tensor(&[3, 4], 1)).unwrap();
                let to = slot(granularity.clone());
                calibrate(&to, factory(smoothed, looking), options(disabled), step)
            };
            let (told, seen) = (run(false), run(true));
            assert_eq!(told, seen, "smoothed {smoothed}, disabled {disabled}");
            let estimate = &told.1.unwrap().slots[0];
            assert_eq!((estimate.batches, estimate.elements), (3, 36));
        }
    }
}

#[test]
fn a_weight_without_a_range_is_refused_as_ever() {
    let _constants = flags::inference();
    let weight = Param::new(Tensor::full(f32::NAN, (2, 2), &Device::Cpu).unwrap());
    let to = slot(Granularity::PerTensor);
    let guard =
        estimate_ranges(&entries(&to), EstimatorConfig::running_minmax(), options(false)).unwrap();
    let error = weight.quantized(&to).unwrap_err().to_string();
    assert!(error.contains("`model.y`") && error.contains("4 of 4 values are NaN"), "{error}");
    weight.set(&Tensor::ones((2, 2), DType::F32, &Device::Cpu).unwrap()).unwrap();
    assert!(weight.quantized(&to).unwrap().is_quantized());
    assert_eq!(guard.finish().unwrap().slots[0].batches, 1);
}
