//! A choice of widths as rules that a person can read and edit.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use fastforward_core::config::{QuantConfigFile, RuleEntry};
use fastforward_core::files::write_whole;
use fastforward_core::quantization::quant_init::{Expect, QuantizerSpec};
use mpath::NameFragment;

use super::{Allocation, Sensitivity, SensitivityScore, SlotPrices};
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::{Job, Samples};

/// The names in one rule, so that its query stays within what queries may be.
const NAMES_PER_RULE: usize = 200;

/// The place of a configuration with chosen widths: the file of a job, and more rules.
pub struct MixedFile<'j> {
    job: &'j Job,
    path: PathBuf,
}

impl<'j> MixedFile<'j> {
    /// Refuses a place where the file cannot be written, or would replace or mean something else. Nothing is written yet.
    ///
    /// # Errors
    /// `Io` when the path is a file that the job reads, or a folder, or lies in none; `Input` when paths in the
    /// configuration would mean other files there, and when its rules are not written so that more can follow.
    pub fn new(job: &'j Job, path: &Path) -> Result<Self> {
        let io = |text: String| Err(Error::new(ErrorKind::Io, text));
        let shown = path.display();
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        if path.is_dir() {
            return io(format!("`{shown}` is a folder; the configuration is written as a file"));
        }
        if !folder.is_dir() {
            return io(format!(
                "cannot write `{shown}`: there is no folder `{}`",
                folder.display()
            ));
        }
        let inputs = inputs(job)?;
        if path.canonicalize().is_ok_and(|path| inputs.contains(&path)) {
            return io(format!("`{shown}` is read by this job and would be replaced"));
        }
        let config = Path::new(job.config.name());
        let own = config.parent().unwrap_or(Path::new(""));
        let here = path.parent().unwrap_or(Path::new(""));
        let absolute = |folder: &Path| {
            if folder.as_os_str().is_empty() { Path::new(".") } else { folder }.canonicalize().ok()
        };
        if absolute(own) != absolute(here) {
            let there = QuantConfigFile::parse(job.config.text(), job.config.name(), here)?;
            if there.calibration != job.config.calibration
                || there.evaluation != job.config.evaluation
            {
                let text = format!(
                    "`{shown}`: the paths of data in `{}` are relative to its folder; write the file into `{}`",
                    job.config.name(),
                    absolute(own).unwrap_or_else(|| own.to_owned()).display()
                );
                return Err(Error::new(ErrorKind::Input, text));
            }
        }
        let lines: Vec<&str> = job.config.text().lines().collect();
        let is_table = |rule: &RuleEntry| {
            lines.get(rule.line - 1).is_some_and(|line| line.trim_start().starts_with("[["))
        };
        if let Some(rule) = job.config.rules.iter().find(|rule| !is_table(rule)) {
            let text = format!(
                "{}: rules can be added only behind rules that begin with [[rule]]",
                rule.source
            );
            return Err(Error::new(ErrorKind::Input, text));
        }
        Ok(Self { job, path: path.to_owned() })
    }

    /// Writes the configuration with the widths of `found`: aside, then renamed.
    ///
    /// # Errors
    /// As [`MixedFile::text`]; `Core` when the file cannot be written.
    pub fn write(&self, found: &Sensitivity) -> Result<()> {
        let text = self.text(found)?;
        Ok(write_whole(&self.path, |file| file.write_all(text.as_bytes()))?)
    }

    /// The text of the configuration: that of the job, and behind it a rule for each width that its rules do not give, with
    /// the price of each slot.
    ///
    /// A rule of the job that decides nothing any more becomes optional, and what it expects a comment. The text is read
    /// again and its rules resolved before it is given back.
    ///
    /// # Errors
    /// `Input` when nothing was chosen; `Rules` when the slots would not get their widths.
    pub fn text(&self, found: &Sensitivity) -> Result<String> {
        let Some(allocation) = &found.allocation else {
            return Err(Error::new(
                ErrorKind::Input,
                "there is no budget, so no widths were chosen that could be written",
            ));
        };
        let mut groups: BTreeMap<(usize, u32), Vec<&SlotPrices>> = BTreeMap::new();
        for (slot, &bits) in found.slots.iter().zip(&allocation.point.bits) {
            groups.entry((slot.rule, bits)).or_default().push(slot);
        }
        let mut text = self.with_optional(&self.left_without(&groups));
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&head(found, allocation));
        let mut names: Vec<String> =
            self.job.config.rules.iter().filter_map(|rule| rule.name.clone()).collect();
        for ((rule, bits), slots) in groups {
            let Some(entry) = self.job.config.rules.get(rule) else { continue };
            if entry.quantizer.num_bits() == Some(bits) {
                let _ = writeln!(text, "\n# {bits} bits, as {} says:", called(entry));
                slots.iter().for_each(|slot| text.push_str(&price(slot, bits, found)));
                continue;
            }
            for slots in slots.chunks(NAMES_PER_RULE) {
                let _ = writeln!(text, "\n# {bits} bits in place of those of {}:", called(entry));
                slots.iter().for_each(|slot| text.push_str(&price(slot, bits, found)));
                text.push_str(&self.rule(entry, bits, slots, &mut names));
            }
        }
        self.check(&text, found, allocation)?;
        Ok(text)
    }

    /// The rules that will decide nothing.
    fn left_without(&self, groups: &BTreeMap<(usize, u32), Vec<&SlotPrices>>) -> Vec<usize> {
        let mut won: Vec<usize> = self.job.resolution.rules.iter().map(|one| one.won).collect();
        for ((rule, bits), slots) in groups {
            if self.job.config.rules[*rule].quantizer.num_bits() != Some(*bits) {
                won[*rule] = won[*rule].saturating_sub(slots.len());
            }
        }
        let rules = self.job.config.rules.iter().enumerate();
        rules.filter(|(at, rule)| won[*at] == 0 && !rule.optional).map(|(at, _)| at).collect()
    }

    /// The text of the job's file with some rules made optional.
    fn with_optional(&self, rules: &[usize]) -> String {
        let config = &self.job.config;
        let starts: Vec<usize> = config.rules.iter().map(|rule| rule.line).collect();
        let mut text = String::new();
        // The rule in whose lines we are, if it is one of those.
        let mut inside = false;
        for (at, line) in config.text().split_inclusive('\n').enumerate() {
            let number = at + 1;
            if let Some(rule) = starts.iter().position(|&start| start == number) {
                inside = rules.contains(&rule);
                text.push_str(line);
                if inside {
                    text.push_str("optional = true           # the rules at the end of the file decide all of its slots\n");
                }
                continue;
            }
            let key = line.split('=').next().map_or("", str::trim);
            inside &= !line.trim_start().starts_with('[');
            if inside && matches!(key, "expect" | "optional") {
                text.push_str("# ");
            }
            text.push_str(line);
        }
        text
    }

    /// A rule for some slots, which differs from the one that decided them in its query and width.
    fn rule(
        &self,
        entry: &RuleEntry,
        bits: u32,
        slots: &[&SlotPrices],
        names: &mut Vec<String>,
    ) -> String {
        let mut rule = entry.clone();
        // Of a name that was made here before, what stood before it.
        let base = match &entry.name {
            Some(name) => name.split(" at ").next().unwrap_or(name).to_owned(),
            None if slots.iter().all(|slot| slot.is_activation()) => "activations".to_owned(),
            None => "weights".to_owned(),
        };
        let plain = format!("{base} at {bits} bits");
        let numbered = (2..).map(|number| format!("{plain} ({number})"));
        let name =
            std::iter::once(plain.clone()).chain(numbered).find(|name| !names.contains(name));
        names.extend(name.clone());
        rule.name = name;
        rule.query.text = query(slots);
        if let QuantizerSpec::Linear { config, .. } = &mut rule.quantizer {
            config.num_bits = bits;
        }
        rule.optional = false;
        rule.expect = Some(Expect::Exactly(slots.len()));
        // Alone in its file, the rule is rendered as in any other.
        let mut alone = self.job.config.clone();
        alone.rules = vec![rule];
        alone.algorithms.clear();
        let text = alone.to_toml(Path::new(""));
        text.find("[[rule]]").map_or_else(String::new, |at| text[at..].to_owned())
    }

    /// Refuses a text that does not give each slot its width.
    fn check(&self, text: &str, found: &Sensitivity, allocation: &Allocation) -> Result<()> {
        let own = Path::new(self.job.config.name());
        let name = self.path.display().to_string();
        let config = QuantConfigFile::parse(text, &name, own.parent().unwrap_or(Path::new("")))?;
        let job = Job::resolved(self.job.model.clone(), config, self.job.options.clone())?;
        let mut problems = job.problems();
        let plan = job.plan()?;
        for (slot, &bits) in found.slots.iter().zip(&allocation.point.bits) {
            let planned = plan.slot(&slot.names[0]).and_then(|slot| slot.quantizer.as_ref());
            let is = planned.map(|quantizer| quantizer.num_bits);
            if is != Some(bits) {
                problems.push(format!(
                    "`{}` would get {}, chosen are {bits} bits",
                    slot.names[0],
                    is.map_or_else(|| "no quantizer".to_owned(), |bits| format!("{bits} bits"))
                ));
            }
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(Error::many(ErrorKind::Rules, problems).within(format_args!("what `{name}` would be")))
    }
}

/// The files that a job reads, as far as they exist.
fn inputs(job: &Job) -> Result<Vec<PathBuf>> {
    let mut inputs: Vec<PathBuf> = Vec::new();
    inputs.extend(job.original.path().map(Path::to_owned));
    inputs.extend(job.original.data_files()?);
    inputs.push(PathBuf::from(job.config.name()));
    let data = [
        job.config.calibration.as_ref().map(|section| (&section.data, "[calibration]")),
        job.config.evaluation.as_ref().map(|section| (&section.data, "[evaluation]")),
    ];
    for (data, place) in data.into_iter().flatten() {
        inputs.extend(Samples::open(data, &job.config.inputs, &job.model, 1, place)?.paths()?);
    }
    Ok(inputs.into_iter().filter_map(|path| path.canonicalize().ok()).collect())
}

/// What comments call a rule.
fn called(rule: &RuleEntry) -> String {
    match &rule.name {
        Some(name) => format!("the rule `{name}`"),
        None => format!("the rule `{}`", rule.query.text),
    }
}

/// What was chosen, and what the numbers below are.
fn head(found: &Sensitivity, allocation: &Allocation) -> String {
    let Allocation { budgets, point } = allocation;
    let scored = &found.scored;
    let measure = match (scored.score, &scored.metric) {
        (SensitivityScore::Sqnr, _) => "noise over signal of the outputs".to_owned(),
        (SensitivityScore::Kl, _) => "KL divergence of the outputs, in nats,".to_owned(),
        (SensitivityScore::Metric, metric) => {
            format!("loss of `{}`", metric.as_deref().unwrap_or("the metric"))
        }
    };
    let budgets: Vec<String> = budgets.iter().map(|budget| format!("`{budget}`")).collect();
    let averages = [("weights", point.average_bits), ("activations", point.activation_bits)];
    let averages: Vec<String> = averages
        .into_iter()
        .filter_map(|(kind, bits)| Some(format!("{kind} of {:.3} bits", bits?)))
        .collect();
    let mut text = format!(
        "\n# Mixed precision for the budget {}: {} on average, constants of {} B, losses of {:.3e} in sum.\n",
        budgets.join(" and "),
        averages.join(" and "),
        point.bytes,
        point.loss
    );
    if let (Some(value), Some(measured)) = (point.metric, &found.measured) {
        let _ = writeln!(
            text,
            "# The simulated network has `{}` {value} on {} samples.",
            measured.metric, measured.samples
        );
    }
    let _ = writeln!(
        text,
        "# The price of a width is the {measure} with that slot alone quantized, on {} samples of {}.",
        scored.samples, scored.data
    );
    text.push_str("# To give a slot another width, move its name to another rule; `expect` counts the names.\n");
    text
}

/// A comment with the prices of a slot.
fn price(slot: &SlotPrices, bits: u32, found: &Sensitivity) -> String {
    let prices = slot.prices.iter().map(|price| {
        let mark = if price.bits == bits { "*" } else { "" };
        format!("{mark}{}: {:.1e}", price.bits, price.loss)
    });
    let prices = prices.collect::<Vec<_>>().join(", ");
    let width = found.slots.iter().map(|slot| slot.names[0].len()).max().unwrap_or(0);
    // A name may hold anything but what ends a comment.
    let name: String =
        slot.names[0].chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    format!("#   {name:width$}  {prices}\n")
}

/// A query for just these slots.
fn query(slots: &[&SlotPrices]) -> String {
    let path = |name: &str| {
        let steps: Vec<String> =
            name.split('.').map(|step| NameFragment::new(step).to_string()).collect();
        steps.join("/")
    };
    let names: Vec<&str> = slots.iter().map(|slot| slot.names[0].as_str()).collect();
    let common = names.iter().map(|name| name.rsplit_once('.')).collect::<Option<Vec<_>>>();
    let joined = |paths: Vec<String>| match paths.as_slice() {
        [one] => one.clone(),
        several => format!("{{{}}}", several.join(", ")),
    };
    match common {
        Some(parts) if parts.iter().all(|(_, slot)| *slot == parts[0].1) => {
            let modules = parts.iter().map(|(module, _)| path(module)).collect();
            format!("{}/{}", joined(modules), path(parts[0].1))
        }
        _ => joined(names.into_iter().map(path).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(names: &[&str], expected: &str) {
        let slots: Vec<SlotPrices> = names
            .iter()
            .map(|name| SlotPrices {
                names: vec![(*name).to_owned()],
                role: "weight",
                rule: 0,
                elements: 1,
                num_bits: 8,
                prices: Vec::new(),
            })
            .collect();
        let found = query(&slots.iter().collect::<Vec<_>>());
        assert_eq!(found, expected);
        assert_eq!(mpath::Context::new().query(&found).unwrap().to_string(), expected);
    }

    #[test]
    fn queries_name_slots_exactly() {
        check(&["conv1.weight_quantizer"], "conv1/weight_quantizer");
        check(&["c1.weight_quantizer", "a.0.c2.weight_quantizer"], "{c1, a/0/c2}/weight_quantizer");
        check(
            &["c1.weight_quantizer", "c2.bias_quantizer"],
            "{c1/weight_quantizer, c2/bias_quantizer}",
        );
        check(&["my-conv.a]b.weight_quantizer"], "[name:my-conv]/[name:a\\]b]/weight_quantizer");
    }
}
