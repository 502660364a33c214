//! `evaluate`: models side by side.

use fastforward_onnx::pipeline::{self, Evaluation, JobOptions};

use crate::args;
use crate::output::{Outcome, line_width};
use crate::progress::Bars;
use crate::table::{Column, Table};
use crate::text::{bytes, count};

pub(super) fn run(args: &args::Evaluate, common: &args::Common) -> anyhow::Result<Outcome> {
    let options = JobOptions {
        batch_size: args.batch_size,
        n_threads: common.threads,
        ..JobOptions::default()
    };
    let bars = Bars::new(common.quiet);
    let evaluation = pipeline::evaluate(
        &args.models,
        &args.config,
        &options,
        args.predictions.as_deref(),
        &bars,
    )?;
    drop(bars);
    let names: Vec<String> = args.models.iter().map(|path| path.display().to_string()).collect();
    Outcome::done(scores(&evaluation, &names), &evaluation)
}

/// One row per model, one column per metric.
pub(super) fn scores(evaluation: &Evaluation, names: &[String]) -> String {
    // The last model has every metric, those against the first among them.
    let metrics: Vec<(&str, &str)> = evaluation
        .models
        .last()
        .map(|model| model.metrics.iter().map(|one| (one.metric.as_str(), one.unit)).collect())
        .unwrap_or_default();
    let mut columns = vec![Column::name("model"), Column::right("bytes")];
    columns.extend(metrics.iter().map(|(metric, unit)| match *unit {
        "" => Column::right(metric),
        unit => Column::right(&format!("{metric} {unit}")),
    }));
    let mut table = Table::new(columns);
    for (name, model) in names.iter().zip(&evaluation.models) {
        let mut row = vec![name.clone(), bytes(model.file_bytes)];
        row.extend(
            metrics.iter().map(|(metric, _)| model.value(metric).map_or_else(String::new, number)),
        );
        table.row(row);
    }
    let samples = count(evaluation.samples as u64);
    format!("{}on {samples} samples, output `{}`\n", table.render(line_width()), evaluation.output)
}

/// A number with as many digits as tell something.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        _ if value.is_infinite() => if value > 0.0 { "exact" } else { "-inf" }.to_owned(),
        0.0 => "0".to_owned(),
        size if size >= 10.0 => format!("{value:.2}"),
        size if size >= 0.01 => format!("{value:.4}"),
        _ => format!("{value:.1e}"),
    }
}
