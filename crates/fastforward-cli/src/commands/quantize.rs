//! `quantize`: the whole job.

use std::fmt::Write;
use std::time::Instant;

use fastforward_onnx::pipeline::{
    AlgorithmReport, Check, Job, JobData, PlannedBytes, Quantized, Report, Samples,
};
use serde_json::json;

use crate::args;
use crate::commands::evaluate::{number, scores};
use crate::commands::{job_options, plan};
use crate::output::{Exit, Outcome, line_width, to_stderr};
use crate::progress::Bars;
use crate::table::{Column, Table};
use crate::text::{bytes, count, many};

pub(super) fn run(args: &args::Quantize, common: &args::Common) -> anyhow::Result<Outcome> {
    let started = Instant::now();
    let options = job_options(&args.job, common, args.batch_size);
    let job = Job::open(&args.job.model, &args.job.config, &options)?;
    job.check()?;
    if args.dry_run {
        return dry_run(&job, args);
    }
    let bars = Bars::new(common.quiet);
    let quantized = job.quantize(&args.out, &bars)?;
    let times = bars.times();
    drop(bars);
    if !common.quiet {
        for (position, seconds) in times {
            if let Some(one) = quantized.report.algorithms.get(position) {
                to_stderr(&format!("{} (line {}): {seconds:.1} s", one.algorithm, one.line));
            }
        }
        to_stderr(&format!("done in {:.1} s", started.elapsed().as_secs_f64()));
    }
    let mut outcome = Outcome::done(text(&quantized, args.all_layers), &quantized.report)?;
    for check in quantized.failed_checks() {
        outcome = outcome.with_note(check_text(check), Exit::CheckFailed);
    }
    Ok(outcome)
}

/// Everything that can be said without computing.
fn dry_run(job: &Job, args: &args::Quantize) -> anyhow::Result<Outcome> {
    let data = job.open_data()?;
    job.check_outputs(&args.out, &data)?;
    let planned = job.plan()?;
    let mut text = plan::text(&planned);
    let JobData { calibration, evaluation } = &data;
    let mut samples = |what: &str, samples: &Option<Samples>| {
        if let Some(samples) = samples {
            let batch_size = samples.batch_size();
            let _ = writeln!(
                text,
                "{what}: {} in batches of {batch_size}",
                many(samples.len(), "sample")
            );
        }
    };
    samples("calibration", calibration);
    samples("evaluation", evaluation);
    let outputs: Vec<String> =
        job.outputs(&args.out).iter().map(|path| path.display().to_string()).collect();
    text.push_str("would write\n");
    for output in &outputs {
        let _ = writeln!(text, "  {output}");
    }
    let lengths = |samples: &Option<Samples>| samples.as_ref().map(Samples::len);
    let json = json!({
        "plan": planned,
        "calibration_samples": lengths(calibration),
        "evaluation_samples": lengths(evaluation),
        "outputs": outputs,
    });
    let outcome = Outcome::done(text, &json)?;
    Ok(outcome.with_note("nothing was computed, nothing was written".to_owned(), Exit::Done))
}

fn check_text(check: &Check) -> String {
    let Check { name, bound, found, .. } = check;
    format!("check failed: {name} = {bound}, found {}", number(*found))
}

/// What a job comes to, for people.
fn text(quantized: &Quantized, all_layers: bool) -> String {
    let report = &quantized.report;
    let mut text = String::new();
    if let Some(evaluation) = &report.evaluation {
        let names = ["float".to_owned(), "quantized".to_owned()];
        text.push_str(&scores(evaluation, &names));
        text.push('\n');
    }
    for algorithm in &report.algorithms {
        text.push_str(&changes(algorithm));
        text.push('\n');
    }
    if !report.layers.differences.is_empty() {
        text.push_str(&layers(report, all_layers));
        text.push('\n');
    }
    let mut fact = |title: &str, value: &str| {
        let _ = writeln!(text, "{title:<11}{value}");
    };
    let size = report.export.size;
    let change = |before, after| plan::size_change(PlannedBytes { before, after });
    fact("constants", &change(size.constant_bytes_before, size.constant_bytes_after));
    fact("file", &change(size.file_bytes_before, size.file_bytes_after));
    if let Some(opset) = &report.export.opset {
        fact(
            "opset",
            &match opset.before == opset.after {
                true => format!("{}, as before", opset.after),
                false => format!("{} -> {}", opset.before, opset.after),
            },
        );
    }
    for line in verified(report) {
        fact("verified", &line);
    }
    for check in &report.checks {
        let verdict = if check.holds { "holds" } else { "DOES NOT HOLD" };
        fact(
            "check",
            &format!("{} {}: {verdict}, found {}", check.name, check.bound, number(check.found)),
        );
    }
    fact("written", &quantized.model.display().to_string());
    fact("", &quantized.report_file.display().to_string());
    text
}

/// What was read back and found equal.
fn verified(report: &Report) -> Vec<String> {
    let found = &report.verification;
    let mut lines = vec![format!(
        "{} and {} read back exactly",
        many(found.constants, "constant"),
        many(found.activations, "activation")
    )];
    for output in &found.outputs {
        let same = &output.same_rounding;
        let how = match same.max_abs_difference {
            0.0 => "equal to the simulation".to_owned(),
            difference => format!("within {difference:.1e} of the simulation"),
        };
        lines.push(format!("`{}` computed from the file is {how}", output.name));
    }
    const SHOWN: usize = 3;
    let reasons = &found.not_executed;
    lines
        .extend(reasons.iter().take(SHOWN).map(|reason| format!("outputs not compared: {reason}")));
    if reasons.len() > SHOWN {
        lines.push(format!("and {} more like it (--json)", count((reasons.len() - SHOWN) as u64)));
    }
    lines
}

/// What an algorithm changed.
fn changes(algorithm: &AlgorithmReport) -> String {
    let AlgorithmReport { line, algorithm: name, measure, changes, kept, moment_bytes } = algorithm;
    let mut text = format!("{name} (line {line}): {measure}\n");
    let mut table = Table::new([
        Column::name("layer"),
        Column::right("before"),
        Column::right("after"),
        Column::right("rows kept"),
    ]);
    for change in changes {
        table.row([
            change.name.clone(),
            number(change.before),
            change.after.map(number).unwrap_or_default(),
            change
                .rows_kept
                .filter(|&rows| rows > 0)
                .map(|rows| rows.to_string())
                .unwrap_or_default(),
        ]);
    }
    if changes.is_empty() {
        text.push_str("nothing changed\n");
    } else {
        text.push_str(&table.render(line_width()));
    }
    for kept in kept {
        let _ = writeln!(text, "left as it was: {kept}");
    }
    if let Some(moments) = moment_bytes {
        let _ = writeln!(text, "sums over inputs: {} at most", bytes(*moments));
    }
    text
}

/// The values that quantization moves most.
fn layers(report: &Report, all: bool) -> String {
    const SHOWN: usize = 10;
    let layers = &report.layers;
    let shown = if all { layers.differences.len() } else { SHOWN };
    let mut table = Table::new([
        Column::name("worst first"),
        Column::flexible("value"),
        Column::right("sqnr dB"),
        Column::right("max diff"),
    ]);
    for layer in layers.differences.iter().take(shown) {
        table.row([
            layer.name.clone(),
            layer.value.clone(),
            number(layer.sqnr_db),
            number(layer.max_abs_difference),
        ]);
    }
    let mut text = table.render(line_width());
    let hidden = layers.differences.len().saturating_sub(shown);
    if hidden > 0 {
        let _ = writeln!(text, "and {} better ones (--all-layers)", count(hidden as u64));
    }
    text
}
