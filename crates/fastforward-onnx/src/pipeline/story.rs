//! Everything about one slot.

use std::ops::Range;

use serde::Serialize;

use fastforward_core::module::NodeRef;
use fastforward_core::quantization::quant_init::SlotResolution;

use super::Job;
use super::plan::{PlannedRule, PlannedSlot};
use crate::error::{Error, ErrorKind, Result};
use crate::tree::Site;

/// The whole story of one slot: what it is, and what each rule says about it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SlotStory {
    /// The slot and what is planned for it.
    #[serde(flatten)]
    pub slot: PlannedSlot,
    /// The class of the module it belongs to.
    pub module_class: String,
    /// The name of the value in the graph.
    pub value: String,
    /// The tags that are not prefixes of other tags.
    pub tags: Vec<String>,
    /// The shape of what stands there, where it is known.
    pub shape: Option<Vec<usize>>,
    /// The axis of output channels, for weights that have one.
    pub channel_axis: Option<usize>,
    /// What will stand in the exported file; `None` where the slot stays in float.
    pub exported: Option<String>,
    /// What each rule says, in the order of the file.
    pub verdicts: Vec<RuleVerdict>,
}

/// What one rule says about a slot.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RuleVerdict {
    /// The rule.
    #[serde(flatten)]
    pub rule: PlannedRule,
    /// What it came to.
    pub verdict: Verdict,
    /// The precedence score, where the rule matches.
    pub score: Option<i64>,
    /// Where the query stops matching, where it does.
    pub stops: Option<Stop>,
}

/// What a rule comes to for a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It decides the slot.
    Wins,
    /// It matches, and another rule decides.
    Loses,
    /// It does not match.
    DoesNotMatch,
}

/// Where a query stops matching a path.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stop {
    /// In a sentence.
    pub text: String,
    /// The text in which the step was written; another than the query's where that comes from an alias.
    pub query: Option<String>,
    /// The bytes of the step in that text.
    pub span: Option<Range<usize>>,
    /// The names on the path that the steps before match.
    pub matched: Vec<String>,
    /// The names of what stands below those.
    pub children: Vec<String>,
}

impl SlotStory {
    pub(super) fn new(job: &Job, path: &str) -> Result<Self> {
        let wanted = path.replace('/', ".");
        let Some(resolved) = job.resolution.slot(path).or_else(|| job.resolution.slot(&wanted))
        else {
            return Err(unknown_slot(job, path));
        };
        let site = job.tree.sites().iter().find(|site| site.slot.id() == resolved.slot.id());
        let site = site.ok_or_else(|| unknown_slot(job, path))?;
        let plan = super::Plan::new(job)?;
        let slot = plan.slot(&site.name).cloned().ok_or_else(|| unknown_slot(job, path))?;
        let verdicts = plan
            .rules
            .into_iter()
            .enumerate()
            .map(|(at, rule)| verdict(job, resolved, at, rule))
            .collect::<Result<_>>()?;
        let metadata = site.slot.metadata();
        Ok(Self {
            module_class: module_class(job, site),
            value: site.value.clone(),
            tags: metadata.leaf_tags().iter().map(ToString::to_string).collect(),
            shape: metadata.shape().map(<[usize]>::to_vec),
            channel_axis: site.channel_axis,
            exported: job.exported_as(site),
            verdicts,
            slot,
        })
    }
}

fn verdict(
    job: &Job,
    resolved: SlotResolution<'_>,
    at: usize,
    rule: PlannedRule,
) -> Result<RuleVerdict> {
    if let Some(winner) = resolved.winner.filter(|winner| winner.rule == at) {
        let score = Some(winner.score);
        return Ok(RuleVerdict { rule, verdict: Verdict::Wins, score, stops: None });
    }
    if let Some(loser) = resolved.losers.iter().find(|loser| loser.rule == at) {
        let score = Some(loser.score);
        return Ok(RuleVerdict { rule, verdict: Verdict::Loses, score, stops: None });
    }
    let query = &job.rules.rules()[at].query;
    let root = NodeRef::Module(job.tree.root());
    let stops = Stop::of(query, root, resolved.name())?;
    Ok(RuleVerdict { rule, verdict: Verdict::DoesNotMatch, score: None, stops })
}

impl Stop {
    /// Where `query` stops matching `path`; `None` where it matches.
    ///
    /// # Errors
    /// `NotFound` when there is no such path, with the nearest names.
    pub fn of(query: &mpath::Selector, root: NodeRef<'_>, path: &str) -> Result<Option<Self>> {
        let why = mpath::why(query, root, path)
            .map_err(|error| Error::new(ErrorKind::NotFound, error.to_string()).caused_by(error))?;
        let text = why.to_string();
        let (step, matched) = match why.verdict {
            mpath::Verdict::Matches => return Ok(None),
            mpath::Verdict::StepFails { step, matched, .. } => (Some(step), matched),
            mpath::Verdict::QueryEnds { matched, .. } => (None, matched),
        };
        let source = step.and_then(|step| step.source);
        let matched = why.names[..matched.min(why.names.len())].to_vec();
        Ok(Some(Self {
            text,
            query: source.as_ref().map(|source| source.query().to_owned()),
            span: source.as_ref().map(mpath::Source::span),
            children: children(root, &matched),
            matched,
        }))
    }
}

/// The names of the children of the node at `path`.
fn children(root: NodeRef<'_>, path: &[String]) -> Vec<String> {
    use mpath::Node;
    let mut node = root;
    for wanted in path {
        let mut found = None;
        node.for_each_child(&mut |name, child| {
            if name == wanted && found.is_none() {
                found = Some(child);
            }
        });
        match found {
            Some(child) => node = child,
            None => return Vec::new(),
        }
    }
    let mut names = Vec::new();
    node.for_each_child(&mut |name, _| names.push(name.to_owned()));
    names
}

fn module_class(job: &Job, site: &Site) -> String {
    use mpath::{Facts, Node};
    let suffix_len = site.name.rsplit('.').next().map_or(0, |last| last.len() + 1);
    let wanted = &site.name[..site.name.len().saturating_sub(suffix_len)];
    // Names may hold dots themselves, so the path is followed by its text.
    fn find<'a>(node: NodeRef<'a>, rest: &str) -> Option<NodeRef<'a>> {
        if rest.is_empty() {
            return Some(node);
        }
        let mut found = None;
        node.for_each_child(&mut |name, child| {
            let Some(after) = rest.strip_prefix(name) else { return };
            let after = match after.strip_prefix('.') {
                Some(after) => after,
                None if after.is_empty() => after,
                None => return,
            };
            if found.is_none() {
                found = find(child, after);
            }
        });
        found
    }
    find(NodeRef::Module(job.tree.root()), wanted)
        .map_or_else(|| site.role.name().to_owned(), |node| node.class().name().to_owned())
}

/// Names what was probably meant: a slot of a similar name, or the slots of a module.
fn unknown_slot(job: &Job, path: &str) -> Error {
    let wanted = path.replace('/', ".");
    let names = || job.resolution.slots().flat_map(|slot| slot.names());
    let below: Vec<&str> =
        names().filter(|name| name.starts_with(&format!("{wanted}."))).take(12).collect();
    let near = || mpath::suggest::ranked(&wanted, names()).into_iter().take(3).collect::<Vec<_>>();
    let quoted = |names: &[&str]| {
        names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
    };
    let hint = match (below.as_slice(), near().as_slice()) {
        ([], []) => "`fastforward inspect --slots` lists all slots".to_owned(),
        ([], near) => format!("did you mean {}?", quoted(near).replace(", ", " or ")),
        (below, _) => format!("it is a module, its slots are {}", quoted(below)),
    };
    Error::new(ErrorKind::NotFound, format!("the model has no slot `{path}`; {hint}"))
}
