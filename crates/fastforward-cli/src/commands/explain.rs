//! `explain`: the whole story of one slot.

use std::fmt::Write;

use fastforward_onnx::pipeline::{Job, RuleVerdict, SlotStory, Verdict};

use crate::args;
use crate::commands::find::stop_text;
use crate::commands::job_options;
use crate::commands::plan::size_change;
use crate::output::Outcome;

pub(super) fn run(args: &args::Explain, common: &args::Common) -> anyhow::Result<Outcome> {
    let job = Job::open(&args.job.model, &args.job.config, &job_options(&args.job, common, None))?;
    let story = job.explain(&args.path)?;
    Outcome::done(text(&story), &story)
}

fn text(story: &SlotStory) -> String {
    let slot = &story.slot;
    let mut text = format!("{}\n", slot.names.join(" = "));
    let mut fact = |title: &str, value: &str| {
        let _ = writeln!(text, "  {title:<13}{value}");
    };
    fact(
        "stands at",
        &format!("{} of a {}, value `{}`", slot.role, story.module_class, story.value),
    );
    fact("tags", &story.tags.join(" "));
    if let Some(shape) = &story.shape {
        let axis = story.channel_axis.map(|axis| format!(", output channels on axis {axis}"));
        fact("shape", &format!("{shape:?}{}", axis.unwrap_or_default()));
    }
    match &slot.quantizer {
        None => fact("quantizer", "none, the slot stays in float"),
        Some(quantizer) => {
            fact("quantizer", &quantizer.text);
            if let Some(estimator) = &quantizer.estimator {
                fact("range", estimator);
            }
        }
    }
    if let Some(exported) = &story.exported {
        fact("exported as", exported);
    }
    if let Some(bytes) = slot.bytes {
        fact("bytes", &size_change(bytes));
    }
    text.push('\n');
    if story.verdicts.is_empty() {
        text.push_str("there are no rules\n");
    }
    for verdict in &story.verdicts {
        text.push_str(&verdict_text(verdict));
    }
    text
}

fn verdict_text(verdict: &RuleVerdict) -> String {
    let RuleVerdict { rule, verdict: came_to, score, stops } = verdict;
    let came_to = match came_to {
        Verdict::Wins => "decides",
        Verdict::Loses => "matches, does not decide",
        Verdict::DoesNotMatch => "does not match",
    };
    let score = score.map(|score| format!(", score {score}")).unwrap_or_default();
    let name = rule.name.as_ref().map(|name| format!(" `{name}`")).unwrap_or_default();
    let mut text = format!("line {}{name}: {came_to}{score}\n", rule.line);
    match stops {
        Some(stop) => text.push_str(&stop_text(stop, 2)),
        None => {
            let _ = writeln!(text, "  {} => {}", rule.query, rule.quantizer);
        }
    }
    text
}
