//! Family `estimators`: running and smoothed min-max, and the grid search with the reference's grid.

use std::any::Any;
use std::sync::Arc;

use fastforward::ArrayView;
use fastforward::module::SlotEntry;
use fastforward::quantization::affine::{AffineParameters, RangeSettings};
use fastforward::quantization::quantizer::RangeSettable;
use fastforward::quantization::{
    Granularity, LinearQuantizer, LinearQuantizerConfig, QuantizerSlot,
};
use fastforward::range_setting::{
    CandidateGrid, EstimatorConfig, InitialRange, MinErrorGrid, MinErrorGridConfig,
    ObserverOptions, RangeObserver, TileRanges,
};
use serde_json::{Value, json};

use crate::differences::{self, Difference};
use crate::golden::{Family, integers};

/// Two sums of errors that agree to this, relatively, may order either way (README of the cases).
const TIE: f64 = 1e-5;

/// How far summed errors may be apart, relatively: the reference adds them up in `f32`.
const SUM: f64 = 1e-4;

pub const DIFFERENCES: &[Difference] = &[Difference {
    family: "estimators",
    when: "a grid search whose product of lower and upper ends has more candidates than were asked for",
    reason: "the reference leaves the surplus unevaluated at error 0, so that one of it always wins; here each is evaluated",
    applies: |case| {
        let n = case["num_candidates"].as_u64().unwrap_or(0);
        case["estimator"] == "min_error"
            && case["cumulative_error"].as_array().is_some_and(|rows| rows.len() as u64 > n)
    },
    check: surplus_is_evaluated,
}];

/// The reference's winner is a candidate it never evaluated; ours was evaluated and makes no larger error.
fn surplus_is_evaluated(case: &Value, ours: &Value) -> Result<(), String> {
    let n = case["num_candidates"].as_u64().expect("a number") as usize;
    let (theirs, errors) = (rows(&case["cumulative_error"]), rows(&ours["cumulative_error"]));
    let their_best: Vec<usize> = integers(&case["best_index"]);
    let our_best: Vec<usize> = integers(&ours["best_index"]);
    ensure(ours["grid_equal"] == true, || "the candidates differ".to_owned())?;
    for (tile, (&their_best, &our_best)) in their_best.iter().zip(&our_best).enumerate() {
        let their_error = theirs[their_best][tile];
        ensure(their_best >= n && their_error == 0.0, || {
            format!("tile {tile}: the reference takes candidate {their_best}, which it evaluated")
        })?;
        ensure(errors[our_best][tile] <= errors[their_best][tile], || {
            format!("tile {tile}: candidate {our_best} is worse than the reference's {their_best}")
        })?;
        for candidate in 0..errors.len() {
            let (error, expected) = (errors[candidate][tile], theirs[candidate][tile]);
            let as_expected = match candidate < n {
                true => (error - expected).abs() <= SUM * expected,
                false => error > 0.0,
            };
            ensure(as_expected, || {
                format!("tile {tile}: candidate {candidate} has error {error}, not {expected}")
            })?;
        }
    }
    Ok(())
}

#[test]
fn conformance_estimators() {
    let family = Family::read("estimators");
    differences::run("estimators", family.cases(), |case| {
        let found = estimate(&family, case);
        let mut case = case.clone();
        let mut ours = json!({});
        if let Some(search) = &found.search {
            // The table sees what it needs of the tensors.
            case["cumulative_error"] = table(&family, &case, "cumulative_error");
            case["best_index"] = json!(tensor_of_indices(&family, &case, "best_index"));
            ours["cumulative_error"] = json!(search.errors);
            ours["best_index"] = json!(search.best);
            ours["grid_equal"] = json!(grid_is_equal(&family, &case, search).is_ok());
        }
        differences::judge("estimators", &case, &ours, || is_equal(&family, &case, &found))
    });
}

/// What our estimator gave.
struct Found {
    /// After each batch: the estimated range, and what the quantizer made of it.
    steps: Vec<(TileRanges, AffineParameters)>,
    /// After each batch, for a grid search.
    errors: Vec<Vec<Vec<f64>>>,
    search: Option<Search>,
}

/// A grid search at its end.
struct Search {
    min: Vec<Vec<f32>>,
    max: Vec<Vec<f32>>,
    errors: Vec<Vec<f64>>,
    best: Vec<usize>,
}

fn estimate(family: &Family, case: &Value) -> Found {
    let quantizer = Arc::new(quantizer(case));
    let mut options = ObserverOptions::default();
    if case["has_initial_range"] == true {
        let initial = |name| family.tensor(case, name).expect("an initial range").f32();
        quantizer.set_quantization_range(initial("initial_min"), initial("initial_max")).unwrap();
        options.initial = InitialRange::Continue;
    }
    let slot = QuantizerSlot::output();
    slot.replace(Arc::<LinearQuantizer>::clone(&quantizer));
    let entry = SlotEntry { names: vec!["quantizer".to_owned()], slot };
    let mut observer =
        RangeObserver::new(entry, estimator(case).build().unwrap(), options).unwrap();

    let shape: Vec<usize> = integers(&case["shape"]);
    let batches = family.tensor(case, "batches").expect("every case has batches");
    let mut found = Found { steps: Vec::new(), errors: Vec::new(), search: None };
    for batch in batches.f32().chunks_exact(shape.iter().product()) {
        observer.observe(ArrayView::new(batch, &shape).unwrap()).unwrap();
        let range = observer.estimate().range.expect("a batch was seen");
        found.steps.push((range, quantizer.parameters().expect("written every step")));
        if let Some(search) = grid_search(&observer) {
            found.errors.push(search.errors.clone());
            found.search = Some(search);
        }
    }
    found
}

fn quantizer(case: &Value) -> LinearQuantizer {
    let granularity = granularity(&case["granularity"]);
    let shape: Vec<usize> = integers(&case["shape"]);
    assert_eq!(granularity.tile_shape(&shape).unwrap(), integers::<usize>(&case["tile_size"]));
    LinearQuantizer::new(LinearQuantizerConfig {
        num_bits: case["num_bits"].as_u64().expect("a number") as u32,
        granularity,
        range: RangeSettings {
            symmetric: case["symmetric"] == true,
            allow_one_sided: case["allow_one_sided"] == true,
            ..RangeSettings::reference()
        },
    })
    .unwrap()
}

fn granularity(value: &Value) -> Granularity {
    match value["kind"].as_str().expect("a kind") {
        "per_tensor" => Granularity::PerTensor,
        "per_channel" => Granularity::PerChannel { axes: integers(&value["axes"]) },
        "per_block" => Granularity::PerBlock {
            dims: integers(&value["block_dims"]),
            sizes: integers(&value["block_sizes"]),
            per_channel_dims: integers(&value["per_channel_dims"]),
        },
        "per_tile" => Granularity::PerTile { shape: integers(&value["tile_shape"]) },
        other => panic!("no granularity {other}"),
    }
}

fn estimator(case: &Value) -> EstimatorConfig {
    let number = |name: &str| case[name].as_f64().expect("a number");
    match case["estimator"].as_str().expect("a name") {
        "running" => EstimatorConfig::running_minmax(),
        "smoothed" => EstimatorConfig::smoothed_minmax(number("gamma")),
        "min_error" => EstimatorConfig::MinErrorGrid(MinErrorGridConfig {
            num_candidates: number("num_candidates") as usize,
            grid: CandidateGrid::Reference,
            absolute_margin: Some(number("absolute_margin")),
            relative_margin: Some(number("relative_margin")),
            ..MinErrorGridConfig::default()
        }),
        other => panic!("no estimator {other}"),
    }
}

fn grid_search(observer: &RangeObserver) -> Option<Search> {
    let search = (observer.estimator() as &dyn Any).downcast_ref::<MinErrorGrid>()?;
    let (candidates, errors) = (search.candidates()?, search.errors()?);
    let (n, num_tiles) = (candidates.num_candidates(), candidates.num_tiles());
    let of_all = |at: usize| (0..num_tiles).map(move |tile| candidates.range(at, tile)).unzip();
    let (min, max) = (0..n).map(of_all).unzip();
    let errors = (0..n).map(|at| (0..num_tiles).map(|tile| errors[tile * n + at]).collect());
    Some(Search { min, max, errors: errors.collect(), best: search.best()? })
}

fn is_equal(family: &Family, case: &Value, found: &Found) -> Result<(), String> {
    let num_params = case["num_params"].as_u64().expect("a number") as usize;
    let of_step = |name: &str, step: usize| {
        let tensor = family.tensor(case, name).unwrap_or_else(|| panic!("a tensor {name}"));
        &tensor.f32()[step * num_params..][..num_params]
    };
    if let Some(search) = &found.search {
        grid_is_equal(family, case, search)?;
        errors_are_equal(family, case, search)?;
    }
    for (step, (range, parameters)) in found.steps.iter().enumerate() {
        let (min, max) = (of_step("range_min", step), of_step("range_max", step));
        let offset = (case["has_offset"] == true).then(|| of_step("offset", step));
        if range.min == min && range.max == max {
            parameters_are_equal(parameters, of_step("scale", step), offset)
                .map_err(|error| format!("batch {step}: {error}"))?;
            continue;
        }
        // Another candidate may win where two errors agree.
        let Some(search) = &found.search else {
            return Err(format!(
                "batch {step}: range {:?} to {:?}, expected {min:?} to {max:?}",
                range.min, range.max
            ));
        };
        let errors = &found.errors[step];
        for tile in 0..num_params {
            let best = errors.iter().map(|errors| errors[tile]).fold(f64::INFINITY, f64::min);
            let accepted = (0..errors.len()).any(|at| {
                (search.min[at][tile], search.max[at][tile]) == (min[tile], max[tile])
                    && errors[at][tile] <= best * (1.0 + TIE)
            });
            ensure(accepted, || {
                format!(
                    "batch {step}, tile {tile}: {} to {}, expected {} to {}",
                    range.min[tile], range.max[tile], min[tile], max[tile]
                )
            })?;
        }
    }
    Ok(())
}

fn grid_is_equal(family: &Family, case: &Value, search: &Search) -> Result<(), String> {
    for (name, ours) in [("grid_min", &search.min), ("grid_max", &search.max)] {
        let tensor = family.tensor(case, name).expect("a grid");
        ensure(tensor.shape == [ours.len(), ours[0].len()], || {
            format!("{} candidates, expected {:?}", ours.len(), tensor.shape)
        })?;
        for (at, (ours, expected)) in ours.iter().flatten().zip(tensor.f32()).enumerate() {
            ensure(ours == expected, || format!("{name}[{at}] is {ours}, expected {expected}"))?;
        }
    }
    Ok(())
}

fn errors_are_equal(family: &Family, case: &Value, search: &Search) -> Result<(), String> {
    let errors = family.tensor(case, "cumulative_error").expect("errors").f32();
    let num_tiles = search.best.len();
    for (at, (&ours, &expected)) in search.errors.iter().flatten().zip(errors).enumerate() {
        let expected = f64::from(expected);
        ensure((ours - expected).abs() <= SUM * expected, || {
            format!(
                "candidate {}, tile {}: error {ours}, expected {expected}",
                at / num_tiles,
                at % num_tiles
            )
        })?;
    }
    // Any index is right whose error the oracle finds as small as that of its best.
    let best = tensor_of_indices(family, case, "best_index");
    for (tile, (&ours, &expected)) in search.best.iter().zip(&best).enumerate() {
        let error_of = |at: usize| f64::from(errors[at * num_tiles + tile]);
        ensure(error_of(ours) <= error_of(expected) * (1.0 + TIE), || {
            format!("tile {tile}: candidate {ours} is best, expected {expected}")
        })?;
    }
    Ok(())
}

fn parameters_are_equal(
    ours: &AffineParameters,
    scale: &[f32],
    offset: Option<&[f32]>,
) -> Result<(), String> {
    ensure(ours.scale == scale, || format!("scale {:?}, expected {scale:?}", ours.scale))?;
    let zeros = vec![0.0; scale.len()];
    let our_offset = ours.offset.as_deref().unwrap_or(&zeros);
    let offset = offset.unwrap_or(&zeros);
    ensure(our_offset == offset, || format!("offset {our_offset:?}, expected {offset:?}"))
}

/// A tensor of floats as a list of rows.
fn table(family: &Family, case: &Value, name: &str) -> Value {
    let tensor = family.tensor(case, name).unwrap_or_else(|| panic!("a tensor {name}"));
    json!(tensor.f32().chunks_exact(tensor.shape[1]).collect::<Vec<_>>())
}

fn tensor_of_indices(family: &Family, case: &Value, name: &str) -> Vec<usize> {
    let tensor = family.tensor(case, name).unwrap_or_else(|| panic!("a tensor {name}"));
    tensor.i32().iter().map(|&index| index as usize).collect()
}

fn rows(value: &Value) -> Vec<Vec<f64>> {
    value
        .as_array()
        .expect("rows")
        .iter()
        .map(|row| {
            row.as_array().expect("a row").iter().map(|v| v.as_f64().expect("a number")).collect()
        })
        .collect()
}

fn ensure(holds: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(message()) }
}
