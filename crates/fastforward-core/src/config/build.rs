//! From the rules of a file to rules that can be resolved.

use mpath::{Aliases, Context, Selector};

use super::diagnostic::Problem;
use super::{QuantConfigFile, QueryText, RuleEntry};
use crate::module::SlotEntry;
use crate::quantization::quant_init::{QuantizationConfig, Resolution, Rule};
use crate::range_setting::EstimatorFactory;
use crate::{Error, ErrorKind};

impl QuantConfigFile {
    /// The rules of the file, their queries parsed with what `context` knows and the aliases of the file.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] with every query that does not parse, at its place in the file,
    /// and what was probably meant.
    pub fn quantization_config(&self, context: Context) -> Result<QuantizationConfig, Error> {
        self.queries(context).map(|(config, _)| config)
    }

    /// The rules as in [`quantization_config`](Self::quantization_config), and the query of each
    /// [algorithm](Self::algorithms) that has one.
    ///
    /// # Errors
    /// As [`quantization_config`](Self::quantization_config), for both.
    pub fn queries(
        &self,
        context: Context,
    ) -> Result<(QuantizationConfig, Vec<Option<Selector>>), Error> {
        let mut problems = Vec::new();
        let mut aliases = Aliases::new();
        // What uses an alias that is wrong cannot be judged.
        let mut wrong_aliases: Vec<&str> = Vec::new();
        let uses_one = |error: &mpath::Error, wrong: &[&str]| {
            let used = error.query().zip(error.span()).and_then(|(text, span)| text.get(span));
            let used = used.unwrap_or_default().trim_start_matches('&');
            error.kind() == mpath::ErrorKind::UnknownAlias && wrong.contains(&used)
        };
        for alias in &self.aliases {
            let defined = context
                .query_with(&alias.query.text, &aliases)
                .and_then(|selector| aliases.define(&alias.name, selector));
            if let Err(error) = defined {
                if !uses_one(&error, &wrong_aliases) {
                    problems.push(self.mpath_problem(&alias.query, &error));
                }
                wrong_aliases.push(&alias.name);
            }
        }
        let mut parse = |query: &QueryText| match context.query_with(&query.text, &aliases) {
            Ok(selector) => Some(selector),
            Err(error) if uses_one(&error, &wrong_aliases) => None,
            Err(error) => {
                problems.push(self.mpath_problem(query, &error));
                None
            }
        };
        let mut rules = Vec::new();
        for entry in &self.rules {
            rules.extend(parse(&entry.query).map(|query| rule(entry, query)));
        }
        let queries = self.algorithms.iter().map(|entry| entry.query.as_ref());
        let targets = queries.map(|query| query.and_then(&mut parse)).collect();
        if !problems.is_empty() {
            return Err(self.source.error(problems));
        }
        let mut config = QuantizationConfig::new(context).with_aliases(aliases);
        for rule in rules {
            config.add(rule);
        }
        Ok((config, targets))
    }

    /// The estimators of the file for the slots that its rules decide: what [`estimate_ranges_with`] takes. Slots whose rule
    /// sets no quantizer, or one without a range, are left out.
    ///
    /// [`estimate_ranges_with`]: crate::range_setting::estimate_ranges_with
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSettings`] when the resolution is not that of this file's rules.
    pub fn estimators(
        &self,
        resolution: &Resolution,
    ) -> Result<Vec<(SlotEntry, EstimatorFactory)>, Error> {
        let mut all = Vec::new();
        for slot in resolution.slots() {
            let Some(winner) = slot.winner else { continue };
            let Some(rule) = self.rules.get(winner.rule) else {
                return Err(Error::new(
                    ErrorKind::InvalidSettings,
                    format!(
                        "the resolution knows a rule {}, `{}` has {}: it was made from other rules",
                        winner.rule,
                        self.name(),
                        self.rules.len()
                    ),
                ));
            };
            if let Some(estimator) = &rule.estimator {
                all.push((slot.to_entry(), estimator.clone().into()));
            }
        }
        Ok(all)
    }

    fn mpath_problem(&self, query: &QueryText, error: &mpath::Error) -> Problem {
        let span = match error.query() == Some(query.text.as_str()) {
            true => error.span().unwrap_or(0..query.text.len()),
            // The error is inside an alias: the whole query is shown.
            false => 0..query.text.len(),
        };
        let mut quoted: Vec<String> =
            error.suggestions().iter().map(|one| format!("`{one}`")).collect();
        if error.kind() == mpath::ErrorKind::UnknownAlias && quoted.is_empty() {
            // The parser knows only the aliases that are right; the one meant may be wrong itself.
            let used = query.text.get(span.clone()).unwrap_or("").trim_start_matches('&');
            let names = self.aliases.iter().map(|alias| alias.name.as_str());
            quoted.extend(mpath::suggest::nearest(used, names).map(|near| format!("`{near}`")));
        }
        let help = match quoted.as_slice() {
            [] => String::new(),
            names => format!("did you mean {}?", names.join(" or ")),
        };
        self.query_problem(query, span, &format!("in the query: {}", error.message()), &help)
    }
}

fn rule(entry: &RuleEntry, query: Selector) -> Rule {
    Rule {
        name: entry.name.clone(),
        source: Some(entry.source.clone()),
        priority: entry.priority,
        optional: entry.optional,
        expect: entry.expect,
        ..Rule::new(query, entry.quantizer.clone())
    }
}
