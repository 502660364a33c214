//! Rules that put quantizers into the slots of a model (spec §2).
//!
//! ```
//! use fastforward_core::quantization::quant_init::{
//!     InitializeOptions, QuantizationConfig, QuantizerSpec, find_quantizers,
//! };
//! # use fastforward_core::module::{Module, Visitor, VisitorMut, classes};
//! # use fastforward_core::quantization::QuantizerSlot;
//! # struct Linear { weight_quantizer: QuantizerSlot, output_quantizer: QuantizerSlot }
//! # impl Module for Linear {
//! #     fn class(&self) -> mpath::Class { mpath::Class::define("Linear", "doc::Linear", &[classes::module()]) }
//! #     fn visit<'a>(&'a self, v: &mut dyn Visitor<'a>) {
//! #         v.slot("weight_quantizer", &self.weight_quantizer);
//! #         v.slot("output_quantizer", &self.output_quantizer);
//! #     }
//! #     fn visit_mut(&mut self, v: &mut dyn VisitorMut) {
//! #         v.slot("weight_quantizer", &mut self.weight_quantizer);
//! #         v.slot("output_quantizer", &mut self.output_quantizer);
//! #     }
//! # }
//! # let model = Linear { weight_quantizer: QuantizerSlot::weight(&[2, 2]), output_quantizer: QuantizerSlot::output() };
//! let mut config = QuantizationConfig::for_model(&model);
//! config
//!     .add_rule("**/[quantizer:parameter]", QuantizerSpec::linear(8))?
//!     .add_rule("**/[quantizer:parameter/weight]", QuantizerSpec::linear(4))?;
//! let done = config.initialize(&model, InitializeOptions::default())?;
//!
//! let weights = find_quantizers(&model, "**/[quantizer:parameter/weight]", None)?;
//! assert_eq!(weights.slots()[0].quantizer().num_bits(), Some(4)); // the rule added last wins
//! // Rules fail closed: the first one decides nothing, and that is said.
//! assert!(done.resolution.problems()[0].to_string().starts_with("rule `**/[quantizer:parameter]` never wins"));
//! # Ok::<(), fastforward_core::Error>(())
//! ```

mod collection;
mod config;
mod factory;
mod fragment;
mod resolution;
mod resolve;
mod rule;
#[cfg(test)]
mod tests;
mod transaction;

use std::collections::HashSet;
use std::sync::LazyLock;

use mpath::{
    Aliases, Class, Context, ExtensionError, Facts as _, Node as _, Query, SearchOptions, Selector,
};

pub use collection::QuantizerCollection;
pub use config::{Initialization, QuantizationConfig};
pub use factory::{ChannelAxis, Factory, QuantizerSpec};
pub use fragment::QuantizerTagSelectorFragment;
pub use resolution::{Candidate, Resolution, RuleProblem, RuleUse, SlotResolution};
pub use rule::{Expect, Rule};
pub use transaction::{InitializeOptions, Outcome, OverwritePolicy};

use crate::module::{Module, NodeRef, classes};
use crate::{Error, ErrorKind};

/// The attribute of a slot's metadata that holds the axis of output channels of a weight.
pub const CHANNEL_AXIS: &str = "channel_axis";

/// All quantizers of `model`, stubs included, that match `query`, in the order of [`mpath::search`].
///
/// The query may name the classes that occur in the model. Without `aliases`, those of the model are used, if it has
/// some ([`Module::aliases`]).
///
/// # Errors
/// [`ErrorKind::Query`] when the query does not parse; the source is the [`mpath::Error`].
pub fn find_quantizers<'m, 'q>(
    model: &'m dyn Module,
    query: impl Into<Query<'q>>,
    aliases: Option<&Aliases>,
) -> Result<QuantizerCollection<'m>, Error> {
    let context = model_context(model);
    let mut options = SearchOptions::new(&context);
    options.aliases = aliases;
    options.root_aliases = model.aliases();
    find_quantizers_with(model, query, &options)
}

/// [`find_quantizers`] with a context of the caller's.
///
/// # Errors
/// As for [`find_quantizers`].
pub fn find_quantizers_with<'m, 'q>(
    model: &'m dyn Module,
    query: impl Into<Query<'q>>,
    options: &SearchOptions<'_>,
) -> Result<QuantizerCollection<'m>, Error> {
    let found = mpath::search(query, NodeRef::Module(model), options).map_err(query_error)?;
    Ok(QuantizerCollection::from_search(found))
}

/// What a query may name when nothing is known of the model: the classes of the library under
/// [all their names](classes::names), and the extensions `quantizer` and `qtag`, besides those of
/// [`mpath::Context::new`].
pub fn default_context() -> Context {
    static CONTEXT: LazyLock<Context> = LazyLock::new(|| {
        let mut context = Context::new();
        for (name, class) in classes::names() {
            context.register_class(name, class);
        }
        let tags = |body: &str, _: &Context| -> Result<Selector, ExtensionError> {
            Ok(Selector::from_fragment(QuantizerTagSelectorFragment::from_raw_string(body)))
        };
        for tag in ["quantizer", "qtag"] {
            let replaced = context.override_extension(tag, tags);
            debug_assert!(
                replaced.is_ok_and(|replaced| replaced.is_none()),
                "both are identifiers"
            );
        }
        context
    });
    CONTEXT.clone()
}

/// The [`default_context`] and the classes that occur in a model, with those they extend, by short name and by path.
///
/// A short name that two classes of the model share means the one that occurs first; the path tells them apart. A layer
/// of the model takes its short name from the library's of that name, so that in a model with a `Linear` of its own
/// `[cls:Linear]` means that one. The names `Module`, `Quantizer` and the like always mean the library's.
pub fn model_context(model: &dyn Module) -> Context {
    let mut context = default_context();
    let reserved = classes::RESERVED.map(|class| class().name());
    let mut known: HashSet<Class> = HashSet::new();
    let mut taken: HashSet<&str> = HashSet::from(reserved);
    for_each_class(model, |class| {
        for &class in [class].iter().chain(class.ancestors()) {
            if !known.insert(class) {
                continue;
            }
            if context.class(class.path()).is_none() {
                context.register_class(class.path(), class);
            }
            if taken.insert(class.name()) && context.class(class.name()) != Some(class) {
                context.register_class(class.name(), class);
            }
        }
    });
    context
}

/// The class of every node, parents first. Neither the depth of the model nor how often its parts are shared matters.
fn for_each_class(model: &dyn Module, mut visit: impl FnMut(Class)) {
    let mut seen: HashSet<usize> = HashSet::new();
    let mut todo = vec![NodeRef::Module(model)];
    while let Some(node) = todo.pop() {
        if node.identity().is_some_and(|identity| !seen.insert(identity)) {
            continue;
        }
        visit(node.class());
        let first = todo.len();
        node.for_each_child(&mut |_, child| todo.push(child));
        todo[first..].reverse();
    }
}

fn query_error(error: mpath::Error) -> Error {
    Error::new(ErrorKind::Query, error.to_string()).with_source(error)
}
