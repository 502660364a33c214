//! `sensitivity`: what each slot costs at each width, and what budgets buy.

use std::fmt::Write;
use std::ops::Range;

use fastforward_onnx::pipeline::{
    Budget, Curve, Job, MixedFile, Point, Sensitivity, SensitivityOptions, SensitivityScore,
    SlotPrices, SweptSlots, SweptWidth,
};

use crate::args;
use crate::commands::evaluate::number;
use crate::commands::job_options;
use crate::output::{Exit, Outcome, line_width};
use crate::progress::Bars;
use crate::table::{Column, Table};
use crate::text::{bytes, count, many};

pub(super) fn run(args: &args::Sensitivity, common: &args::Common) -> anyhow::Result<Outcome> {
    let budgets = args.budget.iter().map(|text| text.parse::<Budget>());
    let options = SensitivityOptions {
        slots: args.slots.map(Into::into),
        bits: args.bits.clone(),
        activation_bits: args.activation_bits.clone(),
        score: args.score.into(),
        data: args.on.map(Into::into),
        samples: args.samples,
        query: args.query.clone(),
        budgets: budgets.collect::<Result<_, _>>()?,
        measure: args.measure,
    };
    let job_options = job_options(&args.job, common, args.batch_size);
    let job = Job::open(&args.job.model, &args.job.config, &job_options)?;
    let file = args.write.as_deref().map(|path| MixedFile::new(&job, path)).transpose()?;
    let bars = Bars::new(common.quiet);
    let found = job.sensitivity(&options, &bars)?;
    drop(bars);
    if let Some(file) = &file {
        file.write(&found)?;
    }
    let mut text = text(&found);
    if let Some(path) = &args.write {
        let _ = writeln!(text, "written    {}", path.display());
    }
    let mut outcome = Outcome::done(text, &found)?;
    for note in &found.notes {
        outcome = outcome.with_note(note.clone(), Exit::Done);
    }
    Ok(outcome)
}

fn text(found: &Sensitivity) -> String {
    let mut text = String::new();
    let mut first = 0;
    for (kind, widths) in
        [("weight", &found.weight_widths), ("activation", &found.activation_widths)]
    {
        let slots = found.slots[first..].iter();
        let n_slots = slots.take_while(|slot| slot.is_activation() == (kind == "activation"));
        let end = first + n_slots.count();
        if end > first {
            text.push_str(&prices(found, kind, widths, first..end));
            text.push('\n');
        }
        first = end;
    }
    for curve in &found.curves {
        text.push_str(&points(found, curve));
        text.push('\n');
    }
    let mut fact = |title: &str, value: &str| {
        let _ = writeln!(text, "{title:<11}{value}");
    };
    if let Some(allocation) = &found.allocation {
        let point = &allocation.point;
        for budget in &allocation.budgets {
            let curve = found
                .curves
                .iter()
                .find(|curve| budget.decides().is_none_or(|kind| kind == curve.slots));
            let how = match (budget, curve.is_none_or(|curve| curve.is_exact)) {
                (Budget::MetricAtLeast(_) | Budget::MetricAtMost(_), _) => {
                    "a point just below it on the curve does not hold the bound"
                }
                (_, true) => "no choice of these widths has a smaller sum of losses",
                (_, false) => "found on a part of the combinations: better ones may exist",
            };
            fact("budget", &format!("{budget}: {how}"));
        }
        let metric = point.metric.zip(found.measured.as_ref());
        let metric = metric.map_or_else(String::new, |(value, measured)| {
            format!(", {} {}", measured.metric, with_unit(value, measured.unit))
        });
        let averages = match (point.average_bits, point.activation_bits) {
            (Some(weights), Some(activations)) => format!(
                "weights of {} and activations of {} bits",
                number(weights),
                number(activations)
            ),
            (one, other) => {
                one.or(other).map_or_else(String::new, |bits| format!("{} bits", number(bits)))
            }
        };
        fact(
            "chosen",
            &format!(
                "{averages} on average, constants {}, predicted {}{metric}",
                bytes(point.bytes),
                predicted(found, point.loss),
            ),
        );
    }
    if let Some(measured) = &found.measured {
        let float = measured.float.map_or_else(String::new, |value| {
            format!("; float has {}", with_unit(value, measured.unit))
        });
        fact(
            "measured",
            &format!(
                "{} on {}, with all quantizers of the rules{float}",
                measured.metric,
                many(measured.samples, "sample")
            ),
        );
    }
    for (kind, widths) in
        [("weights", &found.weight_widths), ("activations", &found.activation_widths)]
    {
        if !widths.is_empty() {
            fact("stored", &format!("{kind} of {}", stored(widths)));
        }
    }
    text
}

/// What the exported file holds codes in: `2 bits as int2 (operator set 25), 3 and 4 bits as ..`.
fn stored(widths: &[SweptWidth]) -> String {
    let groups = widths.chunk_by(|a, b| (a.stored_as, a.opset) == (b.stored_as, b.opset));
    let groups = groups.map(|group| {
        let bits: Vec<String> = group.iter().map(|width| width.bits.to_string()).collect();
        let SweptWidth { stored_as, opset, .. } = group[0];
        let unit = if bits == ["1"] { "bit" } else { "bits" };
        format!("{} {unit} as {stored_as} (operator set {opset})", bits.join(" and "))
    });
    groups.collect::<Vec<_>>().join(", ")
}

fn with_unit(value: f64, unit: &str) -> String {
    match unit {
        "" => number(value),
        unit => format!("{} {unit}", number(value)),
    }
}

/// What losses are shown as, and in which unit.
fn measure(found: &Sensitivity) -> String {
    match (found.scored.score, &found.scored.metric) {
        (SensitivityScore::Sqnr, _) => "sqnr dB".to_owned(),
        (SensitivityScore::Kl, _) => "kl nat".to_owned(),
        (SensitivityScore::Metric, metric) => {
            format!("loss of {}", metric.as_deref().unwrap_or("metric"))
        }
    }
}

/// A loss as people read it: noise over signal in decibels.
fn shown(found: &Sensitivity, loss: f64) -> String {
    match found.scored.score {
        SensitivityScore::Sqnr => number(-10.0 * loss.log10()),
        SensitivityScore::Kl | SensitivityScore::Metric => number(loss),
    }
}

fn predicted(found: &Sensitivity, loss: f64) -> String {
    let measure = measure(found);
    match measure.strip_suffix(" dB").or(measure.strip_suffix(" nat")) {
        Some(name) => format!("{name} {} {}", shown(found, loss), &measure[name.len() + 1..]),
        None => format!("{measure} {}", shown(found, loss)),
    }
}

/// One row per slot: what the network loses at each width.
fn prices(found: &Sensitivity, kind: &str, widths: &[SweptWidth], slots: Range<usize>) -> String {
    let is_weights = kind == "weight";
    let elements = if is_weights { "elements" } else { "per sample" };
    let mut columns = vec![Column::name(kind), Column::right(elements)];
    columns.extend(widths.iter().map(|width| Column::right(&format!("{} bits", width.bits))));
    columns.push(Column::right("chosen"));
    if is_weights {
        columns.push(Column::right("bytes"));
    }
    let mut table = Table::new(columns);
    for at in slots {
        let slot: &SlotPrices = &found.slots[at];
        let chosen = found.allocation.as_ref().map(|allocation| allocation.point.bits[at]);
        let size = slot.prices.iter().find(|price| Some(price.bits) == chosen);
        let mut row = vec![slot.names.join(" = "), count(slot.elements)];
        row.extend(slot.prices.iter().map(|price| shown(found, price.loss)));
        row.push(chosen.map_or_else(String::new, |bits| bits.to_string()));
        if is_weights {
            row.push(size.map_or_else(String::new, |price| bytes(price.bytes)));
        }
        table.row(row);
    }
    let scored = &found.scored;
    format!(
        "{} of `{}` with one {kind} quantized, on {} of {}\n{}",
        measure(found),
        scored.outputs.join("`, `"),
        many(scored.samples, "sample"),
        scored.data,
        table.render(line_width())
    )
}

/// Sizes against losses: all slots at one width, and the curve.
fn points(found: &Sensitivity, curve: &Curve) -> String {
    const SHOWN: usize = 16;
    let metric = found.measured.as_ref().map_or_else(String::new, |measured| match measured.unit {
        "" => measured.metric.clone(),
        unit => format!("{} {unit}", measured.metric),
    });
    let title = match curve.slots {
        SweptSlots::Weights => "weights",
        SweptSlots::Activations => "activations",
        SweptSlots::All => "widths",
    };
    let mut columns = vec![Column::left(title)];
    columns.extend(match curve.slots {
        SweptSlots::All => vec![Column::right("weight bits"), Column::right("activation bits")],
        SweptSlots::Weights | SweptSlots::Activations => vec![Column::right("average bits")],
    });
    if curve.slots != SweptSlots::Activations {
        columns.push(Column::right("constants"));
    }
    columns.extend([Column::right(&measure(found)), Column::right(&metric)]);
    let mut table = Table::new(columns);
    let mut row = |name: String, point: &Point| {
        let averages = [point.average_bits, point.activation_bits];
        let mut row = vec![name];
        row.extend(averages.into_iter().flatten().map(number));
        if curve.slots != SweptSlots::Activations {
            row.push(bytes(point.bytes));
        }
        row.push(shown(found, point.loss));
        row.push(point.metric.map_or_else(String::new, number));
        table.row(row);
    };
    for point in &curve.uniform {
        let name = match (curve.slots, point.bits.first(), point.bits.last()) {
            (SweptSlots::All, Some(weights), Some(activations)) => {
                format!("all {weights}, {activations}")
            }
            (_, Some(bits), _) => format!("all {bits}"),
            _ => String::new(),
        };
        row(name, point);
    }
    let chosen = found.chosen(curve);
    let last = curve.points.len().saturating_sub(1);
    let evenly: Vec<usize> = (0..SHOWN).map(|at| at * last / (SHOWN - 1)).collect();
    let mut hidden = 0;
    for (at, point) in curve.points.iter().enumerate() {
        let is_chosen = chosen == Some(point.bits.as_slice());
        if !is_chosen && point.metric.is_none() && !evenly.contains(&at) {
            hidden += 1;
            continue;
        }
        row(if is_chosen { "chosen" } else { "curve" }.to_owned(), point);
    }
    let mut text = table.render(line_width());
    if hidden > 0 {
        let _ = writeln!(text, "and {} more of the curve (--json)", many(hidden, "point"));
    }
    text
}
