use std::panic::{AssertUnwindSafe, catch_unwind};

use mpath::Class;

use super::*;
use crate::module::{Visitor, VisitorMut, classes};
use crate::quantization::quant_init::find_quantizers;
use crate::quantization::quantizer::QuantizerStub;
use crate::quantization::{
    DynamicLinearQuantizer, DynamicLinearQuantizerConfig, LinearQuantizer, LinearQuantizerConfig,
    QuantizerSlot,
};
use crate::range_setting::{EstimatorConfig, RangeEstimator};

/// A chain of slots: data flows through each in order.
struct Chain(Vec<(&'static str, QuantizerSlot)>);

impl Module for Chain {
    fn class(&self) -> Class {
        Class::define("Chain", "tests::Chain", &[classes::module()])
    }
    fn visit<'a>(&'a self, visitor: &mut dyn Visitor<'a>) {
        self.0.iter().for_each(|(name, slot)| visitor.slot(name, slot));
    }
    fn visit_mut(&mut self, visitor: &mut dyn VisitorMut) {
        self.0.iter_mut().for_each(|(name, slot)| visitor.slot(name, slot));
    }
}

impl Chain {
    /// Slots `a`, `b`, .. with 8-bit asymmetric quantizers.
    fn new(slots: usize) -> Self {
        Self(["a", "b", "c", "d"][..slots].iter().map(|&name| (name, linear(8))).collect())
    }

    fn forward(&self, data: &[f32]) -> Result<Vec<f32>, Error> {
        let mut x = crate::Array::new(data.to_vec(), vec![data.len()])?;
        for (_, slot) in &self.0 {
            x = slot.forward(x.view())?.into_array(x.view());
        }
        Ok(x.data)
    }

    fn slot(&self, at: usize) -> &QuantizerSlot {
        &self.0[at].1
    }

    fn range(&self, at: usize) -> Option<(f32, f32)> {
        let quantizer = self.slot(at).quantizer();
        let (min, max) = quantizer.as_range_settable().unwrap().quantization_range()?;
        Some((min[0], max[0]))
    }

    #[track_caller]
    fn assert_no_overrides(&self) {
        assert!(self.0.iter().all(|(_, slot)| slot.override_count() == 0));
    }
}

fn linear(num_bits: u32) -> QuantizerSlot {
    let slot = QuantizerSlot::output();
    let config = LinearQuantizerConfig::new(num_bits).asymmetric();
    slot.replace(Arc::new(LinearQuantizer::new(config).unwrap()));
    slot
}

fn dynamic() -> QuantizerSlot {
    let slot = QuantizerSlot::output();
    let config = DynamicLinearQuantizerConfig::new(8);
    slot.replace(Arc::new(DynamicLinearQuantizer::new(config).unwrap()));
    slot
}

fn running(model: &Chain, options: EstimationOptions) -> Result<EstimationGuard, Error> {
    estimate_ranges(model, EstimatorConfig::running_minmax(), options)
}

#[track_caller]
fn assert_close(found: Option<(f32, f32)>, expected: (f32, f32)) {
    let (min, max) = found.expect("a range is set");
    assert!((min - expected.0).abs() < 1e-4 && (max - expected.1).abs() < 1e-4, "{min} {max}");
}

#[test]
fn every_step_sets_the_range_and_the_report_counts() {
    let model = Chain::new(2);
    let guard = running(&model, EstimationOptions::default()).unwrap();
    model.forward(&[-1.0, 1.0]).unwrap();
    assert_close(model.range(0), (-1.0, 1.0));
    model.forward(&[0.0, 3.0, 2.0]).unwrap();
    let report = guard.finish().unwrap();
    model.assert_no_overrides();
    assert_close(model.range(0), (-1.0, 3.0));
    let counts: Vec<_> = report
        .slots
        .iter()
        .map(|slot| (slot.names[0].as_str(), slot.batches, slot.elements))
        .collect();
    assert_eq!(counts, [("a", 2, 5), ("b", 2, 5)]);
    assert_eq!(report.slots[0].range, Some(TileRanges { min: vec![-1.0], max: vec![3.0] }));
    assert_eq!(report.slots[0].estimator, "running_minmax");
}

#[test]
fn data_flows_on_quantized_or_as_it_came() {
    let through = |disable_quantization| {
        let model = Chain(vec![("a", linear(2)), ("b", linear(8))]);
        let options = EstimationOptions { disable_quantization, ..Default::default() };
        let guard = running(&model, options).unwrap();
        let out = model.forward(&[-2.0, -0.6, 1.0]).unwrap();
        guard.finish().unwrap();
        out
    };
    assert_eq!(through(true), [-2.0, -0.6, 1.0]);
    let quantized = through(false);
    assert!((quantized[1] + 1.0).abs() < 1e-3, "two bits round -0.6 to -1: {quantized:?}");
}

#[test]
fn ranges_at_the_end_or_by_a_policy() {
    let model = Chain::new(1);
    let options = EstimationOptions { update: UpdatePolicy::AtEnd, ..Default::default() };
    let guard = running(&model, options).unwrap();
    // Without a range yet, data flows on in float.
    assert_eq!(model.forward(&[-1.0, 0.123456]).unwrap(), [-1.0, 0.123456]);
    assert_eq!(model.range(0), None);
    guard.finish().unwrap();
    assert_close(model.range(0), (-1.0, 0.123456));

    let model = Chain::new(1);
    let update = UpdatePolicy::When(Arc::new(|step| step == 2));
    let guard = running(&model, EstimationOptions { update, ..Default::default() }).unwrap();
    let mut ranges = Vec::new();
    for batch in [[0.0, 1.0], [0.0, 2.0], [0.0, 4.0]] {
        model.forward(&batch).unwrap();
        ranges.push(model.range(0).map(|(_, max)| max.round()));
    }
    assert_eq!(ranges, [None, Some(2.0), Some(2.0)]);
    drop(guard);
    assert_close(model.range(0), (0.0, 2.0));
}

#[test]
fn calibrating_again_starts_anew_or_continues() {
    let calibrate = |initial| {
        let model = Chain::new(1);
        let quantizer = model.slot(0).quantizer();
        quantizer.as_range_settable().unwrap().set_quantization_range(&[-10.0], &[10.0]).unwrap();
        let options = EstimationOptions { initial, ..Default::default() };
        let guard = running(&model, options).unwrap();
        model.forward(&[-1.0, 20.0]).unwrap();
        guard.finish().unwrap();
        model.range(0)
    };
    assert_close(calibrate(InitialRange::StartAnew), (-1.0, 20.0));
    assert_close(calibrate(InitialRange::Continue), (-10.0, 20.0));

    // An estimator that cannot continue says so, but has nothing to say where there is no range.
    let model = Chain::new(2);
    let quantizer = model.slot(1).quantizer();
    quantizer.as_range_settable().unwrap().set_quantization_range(&[-10.0], &[10.0]).unwrap();
    let options = EstimationOptions { initial: InitialRange::Continue, ..Default::default() };
    let error = estimate_ranges(&model, EstimatorConfig::min_error_grid(4), options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().starts_with("`b`: estimator `min_error_grid` cannot"), "{error}");
    model.assert_no_overrides();
}

#[test]
fn unsupported_quantizers_are_all_named_before_anything_is_changed() {
    let model = Chain(vec![("a", linear(8)), ("b", dynamic()), ("c", dynamic())]);
    let error = running(&model, EstimationOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let message = error.to_string();
    assert!(
        message.starts_with("2 quantizers cannot be estimated:\n  - `b`: Dynamic"),
        "{message}"
    );
    assert!(message.contains("\n  - `c`: Dynamic"), "{message}");
    model.assert_no_overrides();

    let options = EstimationOptions { skip_unsupported: true, ..Default::default() };
    let guard = running(&model, options).unwrap();
    assert_eq!(guard.skipped().len(), 2);
    assert_eq!(
        model.0.iter().map(|(_, slot)| slot.override_count()).collect::<Vec<_>>(),
        [1, 0, 0]
    );
    model.forward(&[1.0, 2.0]).unwrap();
    let report = guard.finish().unwrap();
    assert_eq!(report.slots.len(), 1);
    assert_eq!(report.skipped[1].names, ["c"]);
}

#[test]
fn stubs_are_left_alone_and_shared_slots_have_one_estimator() {
    let shared = linear(8);
    let stub = QuantizerSlot::output();
    let model = Chain(vec![
        ("a", shared.clone()),
        ("stub", stub.clone()),
        ("b", shared.clone()),
        ("c", shared),
    ]);
    let guard = running(&model, EstimationOptions::default()).unwrap();
    assert_eq!((model.slot(0).override_count(), stub.override_count()), (1, 0));
    model.forward(&[-1.0, 1.0]).unwrap();
    let report = guard.finish().unwrap();
    assert_eq!(report.slots.len(), 1);
    assert_eq!(report.slots[0].names, ["a", "b", "c"]);
    assert_eq!(report.slots[0].batches, 3, "it sees the data of all its uses");
}

#[test]
fn one_quantizer_in_two_slots_has_one_estimator_that_sees_both() {
    let quantizer = linear(8).quantizer();
    let hold = || {
        let slot = QuantizerSlot::output();
        slot.replace(Arc::clone(&quantizer));
        slot
    };
    let model = Chain(vec![("a", hold()), ("b", hold())]);
    let guard = running(&model, EstimationOptions::default()).unwrap();
    let see = |at: usize, x: &[f32]| {
        model.slot(at).forward(ArrayView::new(x, &[x.len()]).unwrap()).unwrap();
    };
    see(0, &[-8.0, 0.0]);
    see(1, &[0.0, 2.0]);
    let report = guard.finish().unwrap();
    assert_close(model.range(0), (-8.0, 2.0));
    assert_eq!(report.slots.len(), 1);
    assert_eq!(
        (report.slots[0].names.as_slice(), report.slots[0].batches),
        (&["a".to_owned(), "b".to_owned()][..], 2)
    );
    model.assert_no_overrides();
}

#[test]
fn what_a_query_found_is_a_source() {
    let model = Chain::new(3);
    let found = find_quantizers(&model, "{a, c}", None).unwrap();
    let guard =
        estimate_ranges(&found, EstimatorConfig::running_minmax(), Default::default()).unwrap();
    let counts: Vec<usize> = model.0.iter().map(|(_, slot)| slot.override_count()).collect();
    assert_eq!(counts, [1, 0, 1]);
    drop(guard);
    model.assert_no_overrides();
}

#[test]
fn a_quantizer_replaced_after_its_last_batch_is_noticed_at_the_end() {
    let model = Chain::new(3);
    let guard = running(&model, EstimationOptions::default()).unwrap();
    model.slot(0).forward(ArrayView::new(&[1.0], &[1]).unwrap()).unwrap();
    model.slot(1).forward(ArrayView::new(&[1.0], &[1]).unwrap()).unwrap();
    model.slot(0).replace(linear(4).quantizer());
    let error = guard.finish().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnsafeUpdate);
    let message = error.to_string();
    assert!(message.contains("`a`: Linear") && message.contains("`c` saw no data"), "{message}");
}

#[test]
fn slots_and_modules_are_sources_too() {
    let (one, two) = (Chain::new(2), Chain::new(1));
    let modules: [(&str, &dyn Module); 2] = [("encoder", &one), ("decoder", &two)];
    let names = |source: &[SlotEntry]| -> Vec<String> {
        source.iter().map(|entry| entry.name().to_owned()).collect()
    };
    assert_eq!(names(&modules[..].slot_entries()), ["encoder.a", "encoder.b", "decoder.a"]);
    let model: &dyn Module = &one;
    assert_eq!(names(&model.slot_entries()), ["a", "b"]);

    // The same slots again by a list: one estimator each, a name once.
    let mut slots = modules[..].slot_entries();
    slots.extend(modules[..].slot_entries());
    let guard =
        estimate_ranges(&slots, EstimatorConfig::running_minmax(), Default::default()).unwrap();
    one.forward(&[1.0]).unwrap();
    two.forward(&[1.0]).unwrap();
    let report = guard.finish().unwrap();
    assert_eq!(report.slots.len(), 3);
    assert_eq!(report.slots[0].names, ["encoder.a"]);
}

#[test]
fn each_slot_may_have_its_own_estimator_but_only_one() {
    let model = Chain::new(2);
    let entries = named_slots(&model);
    let config = |at: usize| -> EstimatorFactory {
        [EstimatorConfig::running_minmax(), EstimatorConfig::percentile(50.0)][at].clone().into()
    };
    let slots = vec![(entries[0].clone(), config(0)), (entries[1].clone(), config(1))];
    let guard = estimate_ranges_with(slots, Default::default()).unwrap();
    model.forward(&[0.0, 1.0, 2.0, 3.0, 4.0]).unwrap();
    let report = guard.finish().unwrap();
    assert_eq!(report.slots[1].estimator, "percentile");
    assert!(report.slots[1].range.as_ref().unwrap().max[0] < 4.0);

    let slots = vec![(entries[0].clone(), config(0)), (entries[0].clone(), config(1))];
    let error = estimate_ranges_with(slots, Default::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidSettings);
    model.assert_no_overrides();
}

#[test]
fn quantizers_without_data_are_named() {
    let model = Chain::new(4);
    let see_some = |options| {
        let guard = running(&model, options).unwrap();
        let x = [1.0];
        for at in [0, 2] {
            model.slot(at).forward(ArrayView::new(&x, &[1]).unwrap()).unwrap();
        }
        guard.finish()
    };
    let error = see_some(EstimationOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoData);
    let message = error.to_string();
    assert!(message.contains("`b`") && message.contains("`d`"), "{message}");
    assert!(!message.contains("`a`") && !message.contains("`c`"), "{message}");
    assert!(model.range(0).is_some(), "the others have their ranges nonetheless");

    let report =
        see_some(EstimationOptions { no_data: NoData::Report, ..Default::default() }).unwrap();
    let seen: Vec<bool> = report.slots.iter().map(|slot| slot.range.is_some()).collect();
    assert_eq!(seen, [true, false, true, false]);
}

#[test]
fn nothing_is_left_behind_by_errors_early_returns_and_panics() {
    let model = Chain::new(2);
    let early = || -> Result<(), Error> {
        let _guard = running(&model, EstimationOptions::default())?;
        model.forward(&[1.0, f32::NAN])?;
        unreachable!("NaN is refused")
    };
    let message = early().unwrap_err().to_string();
    assert_eq!(message, "`a`, batch 1: 1 of 2 values are NaN, at [1] in data of shape [2]");
    model.assert_no_overrides();

    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _guard = running(&model, EstimationOptions::default()).unwrap();
        model.forward(&[1.0]).unwrap();
        panic!("the model failed");
    }));
    assert!(panicked.is_err());
    model.assert_no_overrides();
    assert!(model.range(0).is_some(), "what was written stays");
}

#[derive(Debug)]
struct Panics;
impl RangeEstimator for Panics {
    fn name(&self) -> &str {
        "panics"
    }
    fn observe(
        &mut self,
        _: ArrayView<'_>,
        _: &dyn crate::quantization::quantizer::RangeSettable,
    ) -> Result<(), Error> {
        panic!("as it says")
    }
    fn range(&self) -> Option<TileRanges> {
        None
    }
    fn merge(&mut self, _: &dyn RangeEstimator) -> Result<(), Error> {
        Ok(())
    }
    fn fork(&self) -> Box<dyn RangeEstimator> {
        Box::new(Panics)
    }
}

#[test]
fn an_estimator_that_panicked_is_not_trusted() {
    let model = Chain::new(1);
    let factory = EstimatorFactory::new(|_| Ok(Box::new(Panics)));
    let guard = estimate_ranges(&model, factory, Default::default()).unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| model.forward(&[1.0]))).is_err());
    assert_eq!(guard.finish().unwrap_err().kind(), ErrorKind::Estimator);
    model.assert_no_overrides();
}

#[test]
fn a_quantizer_that_is_replaced_meanwhile_is_noticed() {
    let model = Chain::new(1);
    let guard = running(&model, EstimationOptions::default()).unwrap();
    model.slot(0).replace(Arc::new(QuantizerStub));
    let error = model.forward(&[1.0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnsafeUpdate, "{error}");
    drop(guard);
    model.assert_no_overrides();
}

#[test]
fn workers_observe_apart_and_merge() {
    let model = Chain::new(1);
    let entry = named_slots(&model).remove(0);
    let estimator = EstimatorConfig::running_minmax().build().unwrap();
    let mut first = RangeObserver::new(entry, estimator, ObserverOptions::default()).unwrap();
    let mut second = first.fork();
    first.observe(ArrayView::new(&[0.0, 1.0], &[2]).unwrap()).unwrap();
    second.observe(ArrayView::new(&[-5.0, 0.5, 0.0], &[3]).unwrap()).unwrap();
    assert_close(model.range(0), (0.0, 1.0));
    first.merge(&second).unwrap();
    let estimate = first.finish().unwrap();
    assert_eq!((estimate.batches, estimate.elements), (2, 5));
    assert_close(model.range(0), (-5.0, 1.0));
}

#[test]
fn ranges_take_the_place_of_data_where_they_are_enough() {
    let model = Chain::new(1);
    let entry = || named_slots(&model).remove(0);
    let ranges = |min, max| TileRanges { min: vec![min], max: vec![max] };
    let estimates = [EstimatorConfig::running_minmax(), EstimatorConfig::smoothed_minmax(0.25)]
        .map(|config| {
            let observer = || {
                let estimator = config.clone().build().unwrap();
                RangeObserver::new(entry(), estimator, ObserverOptions::default()).unwrap()
            };
            let (mut told, mut seen) = (observer(), observer());
            assert!(told.needs_ranges_only());
            for (min, max) in [(0.5, 1.0), (-2.0, 0.0), (-1.0, 4.0)] {
                told.observe_ranges(ranges(min, max), 2).unwrap();
                seen.observe(ArrayView::new(&[max, min], &[2]).unwrap()).unwrap();
            }
            let error = told.observe_ranges(TileRanges { min: vec![0.0; 2], max: vec![1.0; 2] }, 2);
            assert_eq!(error.unwrap_err().kind(), ErrorKind::Granularity);
            let estimate = told.finish().unwrap();
            assert_eq!(estimate, seen.finish().unwrap());
            estimate
        });
    assert_ne!(estimates[0].range, estimates[1].range);

    let percentile = EstimatorConfig::percentile(99.0).build().unwrap();
    let mut other = RangeObserver::new(entry(), percentile, ObserverOptions::default()).unwrap();
    assert!(!other.needs_ranges_only());
    let error = other.observe_ranges(ranges(0.0, 1.0), 2).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(other.batches(), 0);
}

#[test]
fn an_observer_without_data_says_so_with_every_name() {
    let entry = SlotEntry { names: vec!["x".into(), "y".into()], slot: linear(8) };
    let estimator = EstimatorConfig::running_minmax().build().unwrap();
    let mut observer = RangeObserver::new(entry, estimator, ObserverOptions::default()).unwrap();
    let error = observer.finish().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoData);
    assert!(error.to_string().contains("`x` = `y`"), "{error}");
}
