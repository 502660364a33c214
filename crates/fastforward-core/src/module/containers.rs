//! Modules that hold other modules: lists, maps and pointers.
//!
//! A list is a module of class `ModuleList` whose children are named `0`, `1`, ...; a map is one of class `ModuleDict`
//! whose children are named by their keys. A pointer is the module it points to.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::hash::BuildHasher;
use std::sync::Arc;

use indexmap::IndexMap;
use mpath::{Aliases, Class};

use super::{Element, Module, Visitor, VisitorMut, classes};

macro_rules! list {
    () => {
        fn class(&self) -> Class {
            classes::module_list()
        }

        fn visit<'a>(&'a self, visitor: &mut dyn Visitor<'a>) {
            for (index, element) in self.iter().enumerate() {
                element.show(&index.to_string(), visitor);
            }
        }

        fn visit_mut(&mut self, visitor: &mut dyn VisitorMut) {
            for (index, element) in self.iter_mut().enumerate() {
                element.show_mut(&index.to_string(), visitor);
            }
        }
    };
}

/// Children `0`, `1`, ... An absent one keeps its number.
impl<E: Element> Module for Vec<E> {
    list!();
}

/// Children `0`, `1`, ... An absent one keeps its number.
impl<E: Element, const N: usize> Module for [E; N] {
    list!();
}

macro_rules! dict {
    () => {
        fn class(&self) -> Class {
            classes::module_dict()
        }

        fn visit<'a>(&'a self, visitor: &mut dyn Visitor<'a>) {
            for (key, element) in self.iter() {
                element.show(&key.to_string(), visitor);
            }
        }

        fn visit_mut(&mut self, visitor: &mut dyn VisitorMut) {
            for (key, element) in self.iter_mut() {
                element.show_mut(&key.to_string(), visitor);
            }
        }
    };
}

/// Children named by their keys, in the order of the keys.
impl<K, E> Module for BTreeMap<K, E>
where
    K: Display + Ord + Send + Sync + 'static,
    E: Element,
{
    dict!();
}

/// Children named by their keys, in the order of insertion.
impl<K, E, S> Module for IndexMap<K, E, S>
where
    K: Display + Send + Sync + 'static,
    E: Element,
    S: BuildHasher + Send + Sync + 'static,
{
    dict!();
}

/// The module in the box.
impl<M: Module + ?Sized> Module for Box<M> {
    fn class(&self) -> Class {
        (**self).class()
    }

    fn visit<'a>(&'a self, visitor: &mut dyn Visitor<'a>) {
        (**self).visit(visitor);
    }

    fn visit_mut(&mut self, visitor: &mut dyn VisitorMut) {
        (**self).visit_mut(visitor);
    }

    fn aliases(&self) -> Option<&Aliases> {
        (**self).aliases()
    }

    fn identity(&self) -> Option<usize> {
        (**self).identity()
    }
}

/// The shared module: every owner shows the same identity.
///
/// [`visit_mut`](Module::visit_mut) reaches inside only while there is a single owner; slots need no such access, since
/// they are changed through `&self`.
impl<M: Module + ?Sized> Module for Arc<M> {
    fn class(&self) -> Class {
        (**self).class()
    }

    fn visit<'a>(&'a self, visitor: &mut dyn Visitor<'a>) {
        (**self).visit(visitor);
    }

    fn visit_mut(&mut self, visitor: &mut dyn VisitorMut) {
        if let Some(module) = Arc::get_mut(self) {
            module.visit_mut(visitor);
        }
    }

    fn aliases(&self) -> Option<&Aliases> {
        (**self).aliases()
    }

    fn identity(&self) -> Option<usize> {
        Some(Arc::as_ptr(self).cast::<()>() as usize)
    }
}
