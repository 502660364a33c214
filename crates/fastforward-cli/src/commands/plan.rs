//! `plan`: which rule decides each slot.

use std::fmt::Write;

use fastforward_onnx::pipeline::{Job, Plan, PlannedBytes};

use crate::args;
use crate::commands::{inspect, job_options};
use crate::output::{Exit, Outcome, line_width};
use crate::table::{Column, Table};
use crate::text::{bytes, many};

pub(super) fn run(args: &args::Plan, common: &args::Common) -> anyhow::Result<Outcome> {
    let job = Job::open(&args.job.model, &args.job.config, &job_options(&args.job, common, None))?;
    let plan = job.plan()?;
    let outcome = Outcome::done(text(&plan), &plan)?;
    Ok(match plan.problems.as_slice() {
        [] => outcome,
        problems => outcome.with_note(problems_text(problems), Exit::WrongRules),
    })
}

/// The problems as an error message shows them.
fn problems_text(problems: &[String]) -> String {
    let mut text = String::new();
    for problem in problems {
        let separator = if text.is_empty() { "" } else { "\n" };
        let _ = write!(text, "{separator}error: {problem}");
    }
    text
}

/// The whole plan: model, rules, slots, sizes.
pub(super) fn text(plan: &Plan) -> String {
    let mut text = inspect::header(&plan.model);
    text.push('\n');
    text.push_str(&rules(plan));
    text.push('\n');
    if !plan.algorithms.is_empty() {
        text.push_str(&algorithms(plan));
        text.push('\n');
    }
    text.push_str(&slots(plan));
    text.push('\n');
    let _ = writeln!(
        text,
        "{} of {} get a quantizer; constants {}",
        plan.quantized_slots(),
        many(plan.slots.len(), "slot"),
        size_change(plan.constants)
    );
    text
}

/// `110.4 kB -> 29.1 kB (26 %)`
pub(super) fn size_change(size: PlannedBytes) -> String {
    let share = match size.before {
        0 => String::new(),
        before => format!(" ({:.1} %)", 100.0 * size.after as f64 / before as f64),
    };
    format!("{} -> {}{share}", bytes(size.before), bytes(size.after))
}

fn rules(plan: &Plan) -> String {
    let mut table = Table::new([
        Column::right("line"),
        Column::left("rule"),
        Column::flexible("query"),
        Column::right("matches"),
        Column::right("decides"),
    ]);
    for rule in &plan.rules {
        table.row([
            rule.line.to_string(),
            rule.name.clone().unwrap_or_default(),
            rule.query.clone(),
            rule.matched.to_string(),
            rule.won.to_string(),
        ]);
    }
    table.render(line_width())
}

fn algorithms(plan: &Plan) -> String {
    let mut table = Table::new([
        Column::right("line"),
        Column::left("algorithm"),
        Column::flexible("query"),
        Column::right("weights"),
        Column::right("left out"),
    ]);
    let number = |count: usize| if count == 0 { String::new() } else { count.to_string() };
    for one in &plan.algorithms {
        table.row([
            one.line.to_string(),
            one.algorithm.to_owned(),
            one.query.clone().unwrap_or_default(),
            number(one.slots.len()),
            number(one.kept.len()),
        ]);
    }
    table.render(line_width())
}

fn slots(plan: &Plan) -> String {
    let label = |rule: usize| match &plan.rules[rule].name {
        Some(name) => name.clone(),
        None => format!("line {}", plan.rules[rule].line),
    };
    let mut table = Table::new([
        Column::name("slot"),
        Column::flexible("rule"),
        Column::right("bits"),
        Column::flexible("per"),
        Column::flexible("range"),
        Column::flexible("losers"),
    ]);
    for slot in &plan.slots {
        let quantizer = slot.quantizer.as_ref();
        let granularity = quantizer.and_then(|one| one.granularity.as_deref());
        table.row([
            slot.names.join(" = "),
            slot.rule.map_or_else(|| "-".to_owned(), label),
            quantizer.map_or_else(|| "-".to_owned(), |one| one.num_bits.to_string()),
            granularity
                .map(|text| text.strip_prefix("per ").unwrap_or(text))
                .unwrap_or("")
                .to_owned(),
            quantizer.and_then(|one| one.estimator.clone()).unwrap_or_default(),
            slot.losers.iter().map(|&rule| label(rule)).collect::<Vec<_>>().join(", "),
        ]);
    }
    table.render(line_width())
}
