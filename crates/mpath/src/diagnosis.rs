//! Why a query does not match.

mod chain;

use std::collections::BTreeMap;
use std::fmt;

use crate::automaton::Lists;
use crate::selector::{Segment, SegmentKind, Source};
use crate::{Error, Fragment, Node, QuerySet, Selector, Wildcard, suggest};

use chain::Chain;

/// The most children that are compared with what was written, and that are listed.
const MAX_CANDIDATES: usize = 10_000;
const MAX_LISTED: usize = 12;

/// Where the matching of a query that matches nothing dies: `None` if it matches something.
///
/// ```
/// use mpath::{Context, diagnose};
/// # use mpath::{Class, Facts, Node, TagSet};
/// # #[derive(Clone, Copy, PartialEq)] struct Tree(&'static [(&'static str, Tree)]);
/// # impl Facts for Tree {
/// #     fn class(&self) -> Class { Class::define("Module", "doc::Module", &[]) }
/// #     fn tags(&self) -> Option<TagSet> { None }
/// # }
/// # impl Node for Tree {
/// #     fn for_each_child(&self, visit: &mut dyn FnMut(&str, Self)) {
/// #         for (name, child) in self.0 { visit(name, *child) }
/// #     }
/// # }
/// # let tree = Tree(&[("layer", Tree(&[("query", Tree(&[])), ("key", Tree(&[]))]))]);
/// let diagnosis = diagnose(&Context::new().query("layer/qeury/weight")?, tree)?.unwrap();
/// assert_eq!(
///     diagnosis.to_string(),
///     "`layer/qeury/weight` matches nothing: no child of `layer` matches step 2, `qeury`; \
///      its children are `query`, `key`; did you mean `layer/query/weight`?"
/// );
/// # Ok::<(), mpath::Error>(())
/// ```
///
/// # Errors
/// If the selector or the tree exceeds the [`limits`](crate::limits).
pub fn diagnose<N: Node>(selector: &Selector, root: N) -> Result<Option<Diagnosis>, Error> {
    let is_met = |selector: &Selector| {
        let mut met = false;
        QuerySet::new([selector])?.walk_matches(root, |_| met = true)?;
        Ok(met)
    };
    if is_met(selector)? {
        return Ok(None);
    }
    // What a selector matches lies below what its beginnings match: the longest beginning that matches anything can be
    // found by bisection. `alive` segments do, `dead` ones do not.
    let (mut alive, mut dead) = (0, selector.len());
    while dead - alive > 1 {
        let middle = alive + (dead - alive) / 2;
        let is_alive = match selector.prefix(middle) {
            Some(prefix) => matches_root(&prefix) || is_met(&prefix)?,
            None => true,
        };
        *if is_alive { &mut alive } else { &mut dead } = middle;
    }

    let segment = &selector.segments()[alive];
    let mut nearby = Nearby::new(segment);
    let prefix = selector.prefix(alive);
    if prefix.as_ref().is_none_or(matches_root) {
        nearby.look_at("", root);
    }
    if let Some(prefix) = &prefix {
        QuerySet::new([prefix])?
            .walk_matches(root, |visit| nearby.look_at(&visit.path.full_name(), visit.node))?;
    }
    let mut diagnosis = nearby.into_diagnosis(selector, alive);
    if diagnosis.suggestion.is_none() {
        // No name is near: a `*` up to here may have been meant to span any number of levels.
        for index in (0..=alive).rev() {
            if let Some(spanning) = spanning_levels(selector, index)
                && is_met(&spanning)?
            {
                let step = Wildcard::AnyPath.to_string();
                diagnosis.suggestion = Some(Suggestion { step, query: spanning.to_string() });
                break;
            }
        }
    }
    Ok(Some(diagnosis))
}

/// The selector with `**` in place of the `*` at `index`; `None` if there is another segment.
fn spanning_levels(selector: &Selector, index: usize) -> Option<Selector> {
    let mut segments = selector.segments().to_vec();
    match segments[index].kind() {
        SegmentKind::Fragment(fragment)
            if fragment.to_string() == Wildcard::AnyChild.to_string() =>
        {
            segments[index] =
                Segment::new(SegmentKind::Fragment(std::sync::Arc::new(Wildcard::AnyPath)));
            Some(Selector::of(segments))
        }
        _ => None,
    }
}

/// Why a query matches nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Diagnosis {
    /// The query.
    pub selector: Selector,
    /// The step at which matching dies: what is before it matches something, with it nothing.
    pub step: Step,
    /// The full name of a node at which the step fails: the one below which the suggestion holds, else the deepest. The
    /// root has the empty name.
    pub reached: String,
    /// How many nodes there are at which the step fails.
    pub num_reached: usize,
    /// The names of the children of the node reached, in order; no more than a dozen.
    pub children: Vec<String>,
    /// The number of all its children.
    pub num_children: usize,
    /// What was probably meant.
    pub suggestion: Option<Suggestion>,
}

/// One segment of a query.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// Its place in the selector, from 0.
    pub index: usize,
    /// Its text.
    pub text: String,
    /// Where it was written.
    pub source: Option<Source>,
}

/// A step that would have matched, instead of the one that did not, or of a `*` before it that should be `**`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Suggestion {
    /// The text of the step.
    pub step: String,
    /// The text of the whole query with it. What follows the step may fail in turn.
    pub query: String,
}

impl Step {
    fn new(selector: &Selector, index: usize) -> Self {
        let segment = &selector.segments()[index];
        Step { index, text: segment.to_string(), source: segment.source().cloned() }
    }
}

/// Whether the selector matches no level at all.
fn matches_root(selector: &Selector) -> bool {
    let mut lists = Lists::new();
    let list = lists.add(selector);
    lists.matches_nothing(list)
}

/// What is found where a step fails.
struct Nearby<'s> {
    /// The fragments with which the step begins.
    fragments: Vec<&'s dyn Fragment>,
    is_group: bool,
    num_reached: usize,
    deepest: Option<Place>,
    /// Fragments that would have matched, and the first place where.
    candidates: BTreeMap<String, Place>,
}

#[derive(Clone)]
struct Place {
    name: String,
    depth: usize,
    children: Vec<String>,
    num_children: usize,
}

impl<'s> Nearby<'s> {
    fn new(segment: &'s Segment) -> Self {
        let mut fragments = Vec::new();
        first_fragments(segment, &mut fragments);
        let is_group = matches!(segment.kind(), SegmentKind::Group(_));
        Nearby { fragments, is_group, num_reached: 0, deepest: None, candidates: BTreeMap::new() }
    }

    /// Looks at the children of a node at which the step fails.
    fn look_at<N: Node>(&mut self, full_name: &str, node: N) {
        self.num_reached += 1;
        let depth = if full_name.is_empty() { 0 } else { 1 + full_name.matches('.').count() };
        let is_deepest = self.deepest.as_ref().is_none_or(|place| depth > place.depth);
        let is_full = self.candidates.len() >= MAX_CANDIDATES;
        if is_full && !is_deepest {
            return;
        }
        let mut place =
            Place { name: full_name.to_owned(), depth, children: Vec::new(), num_children: 0 };
        let mut new = Vec::new();
        let Nearby { fragments, candidates, .. } = self;
        node.for_each_child(&mut |name, child| {
            place.num_children += 1;
            if place.children.len() < MAX_LISTED {
                place.children.push(name.to_owned());
            }
            if candidates.len() + new.len() >= MAX_CANDIDATES {
                return;
            }
            for fragment in &*fragments {
                let alternatives = fragment.alternatives(name, &child).into_iter();
                new.extend(alternatives.filter(|text| !candidates.contains_key(text)));
            }
        });
        for text in new {
            self.candidates.entry(text).or_insert_with(|| place.clone());
        }
        if is_deepest && (place.num_children > 0 || self.deepest.is_none()) {
            self.deepest = Some(place);
        }
    }

    fn into_diagnosis(self, selector: &Selector, index: usize) -> Diagnosis {
        let known = || self.candidates.keys().map(String::as_str);
        let nearest = self.fragments.iter().find_map(|fragment| {
            let written = fragment.to_string();
            suggest::nearest(&written, known()).map(|step| (written, step.to_owned()))
        });
        let place = match &nearest {
            Some((_, step)) => self.candidates.get(step),
            None => self.deepest.as_ref(),
        };
        let place = place.cloned();
        let (reached, children, num_children) =
            place.map_or_else(Default::default, |p| (p.name, p.children, p.num_children));
        let step = Step::new(selector, index);
        let suggestion = nearest.map(|(written, nearest)| {
            let replaced =
                if self.is_group { step.text.replacen(&written, &nearest, 1) } else { nearest };
            Suggestion { query: with_step(selector, index, &replaced), step: replaced }
        });
        Diagnosis {
            selector: selector.clone(),
            step,
            reached,
            num_reached: self.num_reached,
            children,
            num_children,
            suggestion,
        }
    }
}

fn first_fragments<'s>(segment: &'s Segment, fragments: &mut Vec<&'s dyn Fragment>) {
    match segment.kind() {
        SegmentKind::Fragment(fragment) => fragments.push(&**fragment),
        SegmentKind::Group(alternatives) => {
            for first in alternatives.iter().filter_map(|selector| selector.segments().first()) {
                first_fragments(first, fragments);
            }
        }
    }
}

/// The text of the selector with another step.
fn with_step(selector: &Selector, index: usize, step: &str) -> String {
    let steps = selector.segments().iter().enumerate();
    let texts: Vec<String> =
        steps.map(|(i, s)| if i == index { step.to_owned() } else { s.to_string() }).collect();
    texts.join("/")
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Diagnosis { selector, step, num_reached, num_children, .. } = self;
        write!(f, "`{selector}` matches nothing: no child of ")?;
        match (num_reached, &*self.reached) {
            (0 | 1, "") => f.write_str("the root")?,
            (0 | 1, reached) => write!(f, "`{reached}`")?,
            (several, "") => write!(f, "{several} nodes, such as the root,")?,
            (several, reached) => write!(f, "{several} nodes, such as `{reached}`,")?,
        }
        write!(f, " matches step {}, `{}`", step.index + 1, step.text)?;
        if self.children.is_empty() {
            f.write_str("; it has no children")?;
        } else {
            let names: Vec<String> = self.children.iter().map(|name| format!("`{name}`")).collect();
            let what = if *num_reached > 1 { "the children of the latter" } else { "its children" };
            write!(f, "; {what} are {}", names.join(", "))?;
            if *num_children > names.len() {
                write!(f, " and {} more", num_children - names.len())?;
            }
        }
        match &self.suggestion {
            Some(suggestion) => write!(f, "; did you mean `{}`?", suggestion.query),
            None => Ok(()),
        }
    }
}

/// At which step of a query a path stops matching.
///
/// The path is a full name, its parts joined by dots or slashes.
///
/// ```
/// # use mpath::{Class, Facts, Node, TagSet};
/// # #[derive(Clone, Copy, PartialEq)] struct Tree(&'static [(&'static str, Tree)]);
/// # impl Facts for Tree {
/// #     fn class(&self) -> Class { Class::define("Module", "doc::Module", &[]) }
/// #     fn tags(&self) -> Option<TagSet> { None }
/// # }
/// # impl Node for Tree {
/// #     fn for_each_child(&self, visit: &mut dyn FnMut(&str, Self)) {
/// #         for (name, child) in self.0 { visit(name, *child) }
/// #     }
/// # }
/// # let tree = Tree(&[("layer", Tree(&[("query", Tree(&[])), ("key", Tree(&[]))]))]);
/// let query = mpath::Context::new().query("**/query")?;
/// assert_eq!(
///     mpath::why(&query, tree, "layer.key")?.to_string(),
///     "`layer.key` does not match: step 2, `query`, does not match `key`"
/// );
/// # Ok::<(), mpath::Error>(())
/// ```
///
/// # Errors
/// [`ErrorKind::UnknownPath`](crate::ErrorKind::UnknownPath) if there is no such node;
/// [`ErrorKind::QueryTooLarge`](crate::ErrorKind::QueryTooLarge) if the selector exceeds the limits.
pub fn why<N: Node>(selector: &Selector, root: N, path: &str) -> Result<Why, Error> {
    selector.check_size()?;
    let chain = Chain::find(root, path)?;
    let positions = chain.positions(selector);
    // The farthest position at which a step ends.
    let farthest = |positions: &[bool]| positions.iter().rposition(|&reached| reached);
    let verdict = match positions.iter().position(|reached| farthest(reached).is_none()) {
        Some(after) => {
            // A `**` may have taken the whole path; what the step had to match then is its last name.
            let before = &positions[after - 1];
            let matched = farthest(&before[..chain.len()]).unwrap_or(chain.len());
            let step = Step::new(selector, after - 1);
            Verdict::StepFails { step, matched, next: chain.name(matched).map(str::to_owned) }
        }
        None => {
            let end = positions.last().and_then(|last| farthest(last)).unwrap_or(0);
            match chain.name(end) {
                None => Verdict::Matches,
                Some(next) => Verdict::QueryEnds { matched: end, next: next.to_owned() },
            }
        }
    };
    Ok(Why { path: chain.full_name(chain.len()), names: chain.names(), verdict })
}

/// How a path fares with a query: see [`why`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Why {
    /// The full name of the node.
    pub path: String,
    /// The names on the path.
    pub names: Vec<String>,
    /// The answer.
    pub verdict: Verdict,
}

/// The answer of [`why`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The query matches the path.
    Matches,
    /// All steps before this one match the beginning of the path, with it none does.
    StepFails {
        /// The step.
        step: Step,
        /// How many names of the path the steps before can match at most, leaving one to this step if possible.
        matched: usize,
        /// The name that the step does not match; `None` if the steps before need the whole path.
        next: Option<String>,
    },
    /// The query matches the beginning of the path and ends there.
    QueryEnds {
        /// How many names of the path the query can match at most.
        matched: usize,
        /// The name that is left over.
        next: String,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.path;
        match &self.verdict {
            Verdict::Matches => write!(f, "`{path}` matches"),
            Verdict::StepFails { step, next: Some(next), .. } => write!(
                f,
                "`{path}` does not match: step {}, `{}`, does not match `{next}`",
                step.index + 1,
                step.text
            ),
            Verdict::StepFails { step, next: None, .. } => write!(
                f,
                "`{path}` does not match: it ends before step {}, `{}`",
                step.index + 1,
                step.text
            ),
            Verdict::QueryEnds { matched, next } => write!(
                f,
                "`{path}` does not match: the query ends at `{}`, above `{next}`",
                self.names[..*matched].join(".")
            ),
        }
    }
}
