//! What queries on a graph may name.

use fastforward_core::quantization::quant_init::default_context;
use mpath::Context;

use super::{Tree, classes};

impl Tree {
    /// A context for queries on this tree: the classes of its nodes, the standard operators, and layers under the names
    /// that PyTorch and FastForward for Python give them. An operator that the graph does not use is a known class that
    /// matches nothing, not an unknown one.
    pub fn context(&self) -> Context {
        let mut context = default_context();
        for (name, class) in classes::names() {
            context.register_class(name, class);
        }
        for class in self.classes() {
            for class in [class].iter().chain(class.ancestors()) {
                for name in [class.path(), class.name()] {
                    if context.class(name).is_none() {
                        context.register_class(name, *class);
                    }
                }
            }
        }
        context
    }
}
