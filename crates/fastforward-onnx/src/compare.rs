//! How far quantization moves each value of a graph.

use std::collections::{BTreeMap, HashMap};

use ff_kernels::Difference;
use serde::Serialize;

use crate::calibrate::{Batch, Progress, RunOptions};
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::Model;
use crate::placement::{PlacedConstant, place};
use crate::simulate::Simulated;
use crate::tensor::Tensor;
use crate::tree::{Role, Tree};

/// One value with and without quantization.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerDifference {
    /// The site, or the node for an output without a quantizer: `conv1.weight_quantizer`, `relu1`.
    pub name: String,
    /// The value in the model.
    pub value: String,
    /// Whether a quantizer stands there. An output without one still differs by what was quantized before it.
    pub is_quantized: bool,
    /// `10 · log10(Σ x² / Σ (x - x^)²)` over all batches, `x` in float and `x^` in the simulation; infinite where nothing
    /// differs, NaN where there is no data.
    pub sqnr_db: f64,
    /// `max |x - x^|`.
    pub max_abs_difference: f64,
}

/// Compares every output of a node, every quantized input and every quantized constant, worst first.
///
/// Activations are compared as they come out of the whole graph: their difference holds that of everything before them.
/// Values are held for one batch at a time, and not all of them where they do not fit `options.max_bytes`. Without
/// batches nothing is executed, and only constants are compared.
///
/// # Errors
/// Those of [`Engine::new`], of [`Engine::run`] and of `batches`.
pub fn compare_layers(
    model: &Model,
    tree: &Tree,
    simulated: &Simulated,
    batches: impl IntoIterator<Item = Result<Batch>>,
    options: &RunOptions,
    progress: &mut dyn Progress,
) -> Result<Vec<LayerDifference>> {
    let constants = constants(model, tree)?;
    compare_activations(model, tree, simulated, constants, batches, options, progress)
}

/// [`compare_layers`] where it is known how far constants are moved.
pub(crate) fn compare_activations(
    model: &Model,
    tree: &Tree,
    simulated: &Simulated,
    constants: Vec<LayerDifference>,
    batches: impl IntoIterator<Item = Result<Batch>>,
    options: &RunOptions,
    progress: &mut dyn Progress,
) -> Result<Vec<LayerDifference>> {
    let mut rows = constants;
    let compared = compared_activations(tree, simulated);
    let mut batches = batches.into_iter().peekable();
    if !compared.is_empty() && batches.peek().is_some() {
        let differences = activations(model, simulated, &compared, batches, options, progress)?;
        rows.extend(
            compared
                .into_iter()
                .zip(differences)
                .map(|(one, difference)| row(one.name, one.value, one.is_quantized, &difference)),
        );
    }
    sort(&mut rows);
    Ok(rows)
}

/// Worst first. Stable: equal rows stay in the order of the graph.
pub(crate) fn sort(rows: &mut [LayerDifference]) {
    rows.sort_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db));
}

fn row(name: String, value: String, is_quantized: bool, d: &Difference) -> LayerDifference {
    LayerDifference {
        name,
        value,
        is_quantized,
        sqnr_db: sqnr_db(d),
        max_abs_difference: d.max_abs,
    }
}

/// How far a constant is moved, as a row.
pub(crate) fn constant_row(placed: &PlacedConstant<'_>, d: &Difference) -> LayerDifference {
    row(placed.sites.join(", "), placed.constant.name().to_owned(), true, d)
}

/// Puts in the place of rows of constants that an algorithm changed how far they are from what they were in `float`.
pub(crate) fn replace_changed(
    rows: &mut [LayerDifference],
    changed: &[String],
    float: &Model,
    model: &Model,
    tree: &Tree,
) -> Result<()> {
    let placement = place(model, tree)?;
    for placed in &placement.constants {
        let name = placed.constant.name();
        let Some(row) = rows.iter_mut().find(|row| row.value == name) else { continue };
        let Some(before) = float.constant(name).filter(|_| changed.iter().any(|one| one == name))
        else {
            continue;
        };
        let difference = Difference::of(&before.to_f32()?, &placed.fake_quantized()?)
            .map_err(|error| Error::new(ErrorKind::InvalidGraph, format!("`{name}`: {error}")))?;
        *row = constant_row(placed, &difference);
    }
    Ok(())
}

fn constants(model: &Model, tree: &Tree) -> Result<Vec<LayerDifference>> {
    let placement = place(model, tree)?;
    let rows = placement.constants.iter().map(|placed| {
        let (difference, _) = placed.compare(None)?;
        Ok(constant_row(placed, &difference))
    });
    rows.collect()
}

/// An activation to compare: its name in the float graph and in the simulation.
struct Compared {
    name: String,
    value: String,
    simulated: String,
    is_quantized: bool,
}

fn compared_activations(tree: &Tree, simulated: &Simulated) -> Vec<Compared> {
    let at_output: HashMap<&str, &str> = simulated
        .activations
        .iter()
        .filter(|one| one.is_output)
        .map(|one| (one.value.as_str(), one.after.as_str()))
        .collect();
    let outputs = tree.sites().iter().filter(|site| site.role == Role::Output).map(|site| {
        let after = at_output.get(site.value.as_str());
        let node = site.name.strip_suffix(".output_quantizer").unwrap_or(&site.name);
        Compared {
            name: after.map_or(node, |_| &site.name).to_owned(),
            value: site.value.clone(),
            simulated: after.map_or(site.value.as_str(), |after| after).to_owned(),
            is_quantized: after.is_some(),
        }
    });
    let inputs = simulated.activations.iter().filter(|one| !one.is_output).map(|one| Compared {
        name: one.sites.join(", "),
        value: one.value.clone(),
        simulated: one.after.clone(),
        is_quantized: true,
    });
    outputs.chain(inputs).collect()
}

fn activations(
    model: &Model,
    simulated: &Simulated,
    compared: &[Compared],
    batches: impl IntoIterator<Item = Result<Batch>>,
    options: &RunOptions,
    progress: &mut dyn Progress,
) -> Result<Vec<Difference>> {
    let float = Engine::new(model, &options.engine)?;
    let quantized = Engine::new(&simulated.model, &options.engine)?;
    let mut differences = vec![Difference::default(); compared.len()];
    let mut seen_bytes: BTreeMap<usize, usize> = BTreeMap::new();
    let batches = batches.into_iter();
    let total = batches.size_hint().1;
    for (number, batch) in batches.enumerate() {
        let batch = batch?;
        let inputs: Vec<(&str, &Tensor)> = batch.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let mut start = 0;
        while start < compared.len() {
            let end = group_end(start, compared.len(), &seen_bytes, options.max_bytes);
            let group = &compared[start..end];
            let [names, simulated_names]: [Vec<&str>; 2] = [
                group.iter().map(|one| one.value.as_str()).collect(),
                group.iter().map(|one| one.simulated.as_str()).collect(),
            ];
            let runs = [(&float, &names[..]), (&quantized, &simulated_names[..])];
            let found: Vec<Vec<Tensor>> =
                Engine::run_side_by_side(&inputs, &runs).into_iter().collect::<Result<_>>()?;
            for (at, (value, other)) in (start..).zip(found[0].iter().zip(&found[1])) {
                seen_bytes.insert(at, value.size_bytes() + other.size_bytes());
                let difference = difference(&value.floats(), &other.floats()).map_err(|error| {
                    error.within(format_args!("value `{}`", compared[at].value))
                })?;
                differences[at] = differences[at].merge(&difference);
            }
            start = end;
        }
        progress.batch(number + 1, total);
    }
    Ok(differences)
}

/// How far a group from `start` on reaches before its values take more than `max_bytes`.
fn group_end(start: usize, len: usize, seen: &BTreeMap<usize, usize>, max_bytes: usize) -> usize {
    /// Values that were not seen yet are taken this many at a time.
    const UNKNOWN_GROUP: usize = 8;
    let mut total = 0usize;
    let fits = (start..len).take_while(|at| {
        let size = seen.get(at).copied().unwrap_or(max_bytes / UNKNOWN_GROUP);
        total = total.saturating_add(size);
        total <= max_bytes
    });
    start + fits.count().max(1)
}

/// `10 · log10(Σ a² / Σ (a - b)²)`; infinite where nothing differs, also where all is zero; NaN where there is no data.
pub(crate) fn sqnr_db(d: &Difference) -> f64 {
    match d.sum_error_squared {
        0.0 if d.len > 0 => f64::INFINITY,
        noise => 10.0 * (d.sum_reference_squared / noise).log10(),
    }
}

pub(crate) fn difference(reference: &[f32], other: &[f32]) -> Result<Difference> {
    Difference::of(reference, other)
        .map_err(|error| Error::new(ErrorKind::Execution, error.to_string()).caused_by(error))
}
