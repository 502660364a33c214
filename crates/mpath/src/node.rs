//! The little that a query needs to know of a tree.

use crate::{Class, TagSet};

/// What a fragment of a query may ask about one node, besides its name.
pub trait Facts {
    /// What the node is.
    fn class(&self) -> Class;

    /// The tags of a quantizer; `None` for everything that is not a quantizer.
    fn tags(&self) -> Option<TagSet>;

    /// Both at once, for trees where that is less work than one after the other.
    fn class_and_tags(&self) -> (Class, Option<TagSet>) {
        (self.class(), self.tags())
    }
}

/// A cheap handle of a node in a tree: a reference, an index.
///
/// Children have names and an order. A node that can be reached by several paths (a shared quantizer) says so by an
/// [`identity`](Node::identity); it is then one node with several names.
pub trait Node: Facts + Copy {
    /// Calls `visit` with the name and the handle of each child, in declaration order.
    fn for_each_child(&self, visit: &mut dyn FnMut(&str, Self));

    /// A number that two handles share exactly when they are the same node; `None` for a node that has one parent only.
    fn identity(&self) -> Option<usize> {
        None
    }
}
