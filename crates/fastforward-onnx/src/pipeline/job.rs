//! A model, and what is to be done with it.

use std::collections::BTreeMap;
use std::path::Path;

use fastforward_core::config::{ActivationType, CalibrationSection, QuantConfigFile};
use fastforward_core::files::sha256;
use fastforward_core::module::NodeRef;
use fastforward_core::quantization::quant_init::{
    Expect, InitializeOptions, QuantizationConfig, Resolution, RuleProblem,
};
use mpath::{Context, SegmentKind, Selector};

use super::algorithms;
use super::plan::Plan;
use super::samples::Samples;
use super::story::SlotStory;
use super::summary::file_name;
use crate::engine::EngineOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::Model;
use crate::rewrite::{FoldReport, fold_batch_norm};
use crate::tree::{Role, Tree};

/// A model with its configuration: resolved, with quantizers in its slots, before any data is touched.
pub struct Job {
    /// As it was read.
    pub(super) original: Model,
    /// With batch normalizations folded, if the configuration says so. Copies share their data.
    pub(super) model: Model,
    /// `None` for a file of weights, which is hashed with the other files of its data.
    pub(super) model_sha256: Option<String>,
    pub(super) tree: Tree,
    pub(super) folded: FoldReport,
    pub(super) config: QuantConfigFile,
    pub(super) rules: QuantizationConfig,
    pub(super) resolution: Resolution,
    /// The query of each algorithm that has one.
    pub(super) targets: Vec<Option<Selector>>,
    /// The network that is quantized, in float: `model` before weights were chosen.
    pub(super) reference: Model,
    pub(super) options: JobOptions,
}

/// What a caller decides beside the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobOptions {
    /// The integer type of exported activations, in place of the one in the configuration.
    pub activations: Option<ActivationType>,
    /// Samples that are computed at once, in place of the numbers in the configuration.
    pub batch_size: Option<usize>,
    /// Threads to compute with; `None` for one per core. Results are the same for any number.
    pub n_threads: Option<usize>,
}

/// The data of a job, opened and checked.
#[derive(Debug)]
pub struct JobData {
    /// The samples that ranges are set from; `None` where no range needs any.
    pub calibration: Option<Samples>,
    /// The samples that the result is judged by; `None` where the configuration names none.
    pub evaluation: Option<Samples>,
}

impl Job {
    /// Reads model and configuration, decides every slot and puts quantizers there.
    ///
    /// Rules that match nothing or never win are no error yet: [`Job::plan`] shows them, [`Job::check`] refuses them.
    ///
    /// # Errors
    /// Those of [`QuantConfigFile::load`] and [`Model::load`], both if both fail; `Rules` for a query that is none, and
    /// for a quantizer that does not fit its slot.
    pub fn open(model: &Path, config: &Path, options: &JobOptions) -> Result<Self> {
        let config = QuantConfigFile::load(config).map_err(Error::from);
        let model_sha256 = Model::load(model).and_then(|model| {
            let path = model.path().unwrap_or(Path::new("")).to_owned();
            let has_all = model.is_weights() && model.data_files()?.contains(&path);
            let sha256 = (!has_all).then(|| sha256(&path)).transpose()?;
            Ok((model, sha256))
        });
        let ((mut model, model_sha256), config) = both(model_sha256, config)?;
        let original = model.clone();
        let folded = match config.model.fold_batch_norm && !model.is_weights() {
            true => fold_batch_norm(&mut model)?,
            false => FoldReport::default(),
        };
        let job = Self::resolved(model, config, options.clone())?;
        Ok(Self { original, model_sha256, folded, ..job })
    }

    /// The same job on another model.
    pub(super) fn on(&self, model: Model) -> Result<Self> {
        Ok(Self {
            original: self.original.clone(),
            model_sha256: self.model_sha256.clone(),
            folded: self.folded.clone(),
            ..Self::resolved(model, self.config.clone(), self.options.clone())?
        })
    }

    /// A model with its rules resolved and quantizers in its slots.
    pub(super) fn resolved(
        model: Model,
        config: QuantConfigFile,
        options: JobOptions,
    ) -> Result<Self> {
        let tree = Tree::new(&model);
        let (rules, targets) = config.queries(tree.context()).map_err(in_rules)?;
        let resolution = rules.resolve(tree.root()).map_err(in_rules)?;
        if let Err(error) = rules.initialize(tree.root(), InitializeOptions::default()) {
            let mut problems = rule_problems(&rules, &resolution, &tree);
            problems.push(error.to_string());
            return Err(Error::many(ErrorKind::Rules, problems));
        }
        Ok(Self {
            original: model.clone(),
            reference: model.clone(),
            model,
            model_sha256: None,
            tree,
            folded: FoldReport::default(),
            config,
            rules,
            resolution,
            targets,
            options,
        })
    }

    /// What the rules mean for the model.
    ///
    /// # Errors
    /// `InvalidGraph` for a constant that cannot be understood.
    pub fn plan(&self) -> Result<Plan> {
        Plan::new(self)
    }

    /// The whole story of one slot, by any of its names.
    ///
    /// # Errors
    /// `NotFound` with the nearest names.
    pub fn explain(&self, path: &str) -> Result<SlotStory> {
        SlotStory::new(self, path)
    }

    /// Refuses rules that match nothing, never win, or do not match as often as they expect, and quantizers that cannot
    /// be exported where they stand.
    ///
    /// # Errors
    /// `Rules` with every such rule and slot.
    pub fn check(&self) -> Result<()> {
        let problems = self.problems();
        if problems.is_empty() { Ok(()) } else { Err(Error::many(ErrorKind::Rules, problems)) }
    }

    /// What [`Job::check`] refuses.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = rule_problems(&self.rules, &self.resolution, &self.tree);
        if !problems.is_empty() {
            problems.extend(self.without_weights());
        }
        if self.config.rules.is_empty() {
            problems.push(format!(
                "{}: there is no [[rule]], so nothing would be quantized",
                self.config.name()
            ));
        }
        problems.extend(self.tree.set_slots().filter_map(|site| self.export_problem(site)));
        match algorithms::plan(self) {
            Ok((_, found)) => problems.extend(found),
            Err(error) => problems.push(error.to_string()),
        }
        problems
    }

    /// Why a file of weights has none that could be quantized.
    fn without_weights(&self) -> Option<String> {
        if !self.model.is_weights()
            || self.tree.sites().iter().any(|site| site.role == Role::Weight)
        {
            return None;
        }
        let file = self.model.path().map(file_name).unwrap_or_default();
        let mut names = self.model.constants().map(|constant| constant.name());
        if let Some(packed) = names.find(|name| name.ends_with("_packed")) {
            return Some(format!("`{file}` holds codes already: `{packed}`"));
        }
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for info in self.model.constants().filter_map(|constant| constant.info().ok()) {
            *counts.entry(info.dtype.name()).or_default() += 1;
        }
        let mut found: Vec<String> =
            counts.into_iter().map(|(dtype, count)| format!("{count} of {dtype}")).collect();
        if found.is_empty() {
            found.push("none".to_owned());
        }
        Some(format!(
            "`{file}` holds no weight in float16, bfloat16, float32 or float64; its tensors are: {}",
            found.join(", ")
        ))
    }

    /// Opens calibration and evaluation data, and checks what can be checked without reading samples.
    ///
    /// # Errors
    /// As [`Samples::open`], for both at once; `Input` when ranges need data and the configuration names none.
    pub fn open_data(&self) -> Result<JobData> {
        if self.model.is_weights() && self.config.evaluation.is_some() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "{}: [evaluation] executes the model, and a file of weights has no graph that says how",
                    self.config.name()
                ),
            ));
        }
        let open = |data, batch_size, place| {
            let batch_size = self.options.batch_size.unwrap_or(batch_size);
            Samples::open(data, &self.config.inputs, &self.model, batch_size, place)
        };
        let calibration = match (&self.config.calibration, self.needs_data()) {
            (_, None) => Ok(None),
            (Some(CalibrationSection { data, batch_size }), Some(_)) => {
                open(data, *batch_size, "[calibration]").map(Some)
            }
            (None, Some(what)) => Err(Error::new(
                ErrorKind::Input,
                format!(
                    "{}: {what}, but there is no [calibration] that says where it is",
                    self.config.name()
                ),
            )),
        };
        let evaluation = match &self.config.evaluation {
            None => Ok(None),
            Some(section) => open(&section.data, section.batch_size, "[evaluation]").map(Some),
        };
        let (calibration, evaluation) = both(calibration, evaluation)?;
        Ok(JobData { calibration, evaluation })
    }

    /// What needs data, the first that does.
    fn needs_data(&self) -> Option<String> {
        let slot = self
            .tree
            .set_sites()
            .filter(|site| matches!(site.role, Role::Input | Role::Output))
            .find(|site| site.slot.quantizer().as_range_settable().is_some());
        let algorithm = || {
            let found = self.config.algorithms.iter().find(|one| one.algorithm.needs_data())?;
            Some(format!("`{}` (line {}) looks at data", found.algorithm, found.line))
        };
        slot.map(|site| format!("the range of `{}` comes from data", site.name)).or_else(algorithm)
    }

    /// The model, with what the configuration folds folded.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The tree of the model.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The configuration.
    pub fn config(&self) -> &QuantConfigFile {
        &self.config
    }

    /// What names in queries mean for this model.
    pub fn context(&self) -> Context {
        self.tree.context()
    }

    pub(super) fn engine_options(&self) -> EngineOptions {
        EngineOptions { n_threads: self.options.n_threads, ..EngineOptions::default() }
    }
}

/// What is wrong with rules, and what was probably meant.
fn rule_problems(rules: &QuantizationConfig, resolution: &Resolution, tree: &Tree) -> Vec<String> {
    let problems = resolution.problems();
    let unmatched: Vec<&str> = problems
        .iter()
        .filter_map(|problem| match problem {
            RuleProblem::Unmatched { rule, .. } => Some(rule.as_str()),
            _ => None,
        })
        .collect();
    let texts = problems.iter().filter_map(|problem| {
        let text = problem.to_string();
        let RuleProblem::Unexpected { rule: label, expected, matched } = problem else {
            return Some(text);
        };
        // That it matches nothing was said, and says more.
        if unmatched.contains(&label.as_str()) {
            return None;
        }
        let wanted = match *expected {
            Expect::Exactly(count) | Expect::AtLeast(count) => count,
            Expect::AtMost(_) => 0,
        };
        let rule = rules.rules().iter().find(|rule| rule.label() == *label);
        let dead = match rule {
            Some(rule) if *matched < wanted => dead_alternatives(&rule.query, tree),
            _ => Vec::new(),
        };
        Some([&[text], dead.as_slice()].concat().join("; "))
    });
    texts.collect()
}

/// Why alternatives of groups match nothing, those that do not.
fn dead_alternatives(query: &Selector, tree: &Tree) -> Vec<String> {
    let mut dead = Vec::new();
    for (group, segment) in query.segments().iter().enumerate() {
        let SegmentKind::Group(alternatives) = segment.kind() else { continue };
        for alternative in alternatives.iter() {
            let one = (0..query.len())
                .filter_map(
                    |at| if at == group { Some(alternative.clone()) } else { query.get(at) },
                )
                .reduce(|before, after| before / after);
            // A query that grew too large by this is not explained further.
            if let Some(one) = one
                && let Ok(Some(diagnosis)) = mpath::diagnose(&one, NodeRef::Module(tree.root()))
            {
                dead.push(diagnosis.to_string());
            }
        }
    }
    dead
}

/// Both values, or the problems of both.
fn both<A, B>(first: Result<A>, second: Result<B>) -> Result<(A, B)> {
    match (first, second) {
        (Ok(first), Ok(second)) => Ok((first, second)),
        (Err(first), Err(second)) => {
            Err(Error::many(first.kind(), vec![first.to_string(), second.to_string()]))
        }
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

fn in_rules(error: fastforward_core::Error) -> Error {
    Error::new(ErrorKind::Rules, error.to_string()).caused_by(error)
}
