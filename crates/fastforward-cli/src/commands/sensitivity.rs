//! `sensitivity`: what each weight costs at each width, and what a budget buys.

use std::fmt::Write;

use fastforward_onnx::pipeline::{
    Budget, Job, MixedFile, Point, Sensitivity, SensitivityOptions, SensitivityScore,
};

use crate::args;
use crate::commands::evaluate::number;
use crate::commands::job_options;
use crate::output::{Exit, Outcome, line_width};
use crate::progress::Bars;
use crate::table::{Column, Table};
use crate::text::{bytes, count, many};

pub(super) fn run(args: &args::Sensitivity, common: &args::Common) -> anyhow::Result<Outcome> {
    let options = SensitivityOptions {
        bits: args.bits.clone(),
        score: args.score.into(),
        data: args.on.map(Into::into),
        samples: args.samples,
        query: args.query.clone(),
        budget: args.budget.as_deref().map(str::parse::<Budget>).transpose()?,
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
    let mut text = prices(found);
    text.push('\n');
    text.push_str(&points(found));
    text.push('\n');
    let mut fact = |title: &str, value: &str| {
        let _ = writeln!(text, "{title:<11}{value}");
    };
    if let Some(allocation) = &found.allocation {
        let point = &allocation.point;
        let how = match (found.is_exact, allocation.budget) {
            (_, Budget::MetricAtLeast(_) | Budget::MetricAtMost(_)) => {
                "a point just below it on the curve does not hold the bound"
            }
            (true, _) => "no choice of these widths has a smaller sum of losses",
            (false, _) => "found on a part of the combinations: better ones may exist",
        };
        fact("budget", &format!("{}: {how}", allocation.budget));
        let metric = point.metric.zip(found.measured.as_ref());
        let metric = metric.map_or_else(String::new, |(value, measured)| {
            format!(", {} {}", measured.metric, with_unit(value, measured.unit))
        });
        fact(
            "chosen",
            &format!(
                "{} bits on average, constants {}, predicted {}{metric}",
                number(point.average_bits),
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
    text
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

/// One row per weight: what the network loses at each width.
fn prices(found: &Sensitivity) -> String {
    let mut columns = vec![Column::name("weight"), Column::right("elements")];
    columns.extend(found.bits.iter().map(|bits| Column::right(&format!("{bits} bits"))));
    columns.extend([Column::right("chosen"), Column::right("bytes")]);
    let mut table = Table::new(columns);
    for (at, weight) in found.weights.iter().enumerate() {
        let chosen = found.allocation.as_ref().map(|allocation| allocation.point.bits[at]);
        let size = weight.prices.iter().find(|price| Some(price.bits) == chosen);
        let mut row = vec![weight.names.join(" = "), count(weight.elements)];
        row.extend(weight.prices.iter().map(|price| shown(found, price.loss)));
        row.push(chosen.map_or_else(String::new, |bits| bits.to_string()));
        row.push(size.map_or_else(String::new, |price| bytes(price.bytes)));
        table.row(row);
    }
    let scored = &found.scored;
    format!(
        "{} of `{}` with one weight quantized, on {} of {}\n{}",
        measure(found),
        scored.outputs.join("`, `"),
        many(scored.samples, "sample"),
        scored.data,
        table.render(line_width())
    )
}

/// Sizes against losses: all weights at one width, and the curve.
fn points(found: &Sensitivity) -> String {
    const SHOWN: usize = 16;
    let metric = found.measured.as_ref().map_or_else(String::new, |measured| match measured.unit {
        "" => measured.metric.clone(),
        unit => format!("{} {unit}", measured.metric),
    });
    let mut table = Table::new([
        Column::left("widths"),
        Column::right("average bits"),
        Column::right("constants"),
        Column::right(&measure(found)),
        Column::right(&metric),
    ]);
    let mut row = |name: String, point: &Point| {
        table.row([
            name,
            number(point.average_bits),
            bytes(point.bytes),
            shown(found, point.loss),
            point.metric.map_or_else(String::new, number),
        ]);
    };
    for (bits, point) in found.bits.iter().zip(&found.uniform) {
        row(format!("all {bits}"), point);
    }
    let chosen = found.allocation.as_ref().map(|allocation| &allocation.point.bits);
    let last = found.curve.len().saturating_sub(1);
    let evenly: Vec<usize> = (0..SHOWN).map(|at| at * last / (SHOWN - 1)).collect();
    let mut hidden = 0;
    for (at, point) in found.curve.iter().enumerate() {
        let is_chosen = Some(&point.bits) == chosen;
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
