//! The little that a query needs to know of a tree.

use crate::{Class, Kind, TagSet};

/// What a fragment of a query may ask about one node, besides its name.
pub trait Facts {
    /// What the node is.
    fn class(&self) -> Class;

    /// The tags of a quantizer; `None` for everything that is not a quantizer.
    fn tags(&self) -> Option<TagSet>;

    /// Both as one number, for trees that keep it: this looks it up in a table of the process.
    fn kind(&self) -> Kind {
        Kind::new(self.class(), self.tags())
    }
}

/// A cheap handle of a node in a tree: a reference, an index.
///
/// Children have names and an order. A node that can be reached by several paths (a shared quantizer) says so by an
/// [`identity`](Node::identity); it is then one node with several names.
pub trait Node: Facts + Copy {
    /// Calls `visit` with the name and the handle of each child, in declaration order.
    fn for_each_child(&self, visit: &mut dyn FnMut(&str, Self));

    /// Whether the node is known to have no children. A walk can then go on without asking for them.
    ///
    /// `false` says nothing.
    fn is_leaf(&self) -> bool {
        false
    }

    /// A number that two handles share exactly when they are the same node; `None` for a node that has one parent only.
    fn identity(&self) -> Option<usize> {
        None
    }
}
