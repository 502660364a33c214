//! What kind of thing a node is.

use std::fmt;
use std::hash::{Hash, Hasher};

use crate::Kind;
use crate::intern::Interner;

/// The class of a node: a short name, a full path, and the classes it extends.
///
/// Classes are interned: defining the same class twice gives the same value, comparing is comparing addresses. A class
/// is what `[cls:NAME]` selects; a node of class `C` is also a node of every class that `C` extends.
///
/// ```
/// use mpath::Class;
/// let module = Class::define("Module", "fastforward::Module", &[]);
/// let linear = Class::define("Linear", "fastforward::nn::Linear", &[module]);
/// assert!(linear.is_a(module) && !module.is_a(linear));
/// assert_eq!(linear.name(), "Linear");
/// ```
#[derive(Clone, Copy)]
pub struct Class(&'static ClassInfo);

struct ClassInfo {
    name: Box<str>,
    path: Box<str>,
    /// This class's ancestors, nearest first, without repeats.
    ancestors: Box<[Class]>,
    /// The kind of nodes of this class without tags; not part of the definition.
    kind: Kind,
}

impl ClassInfo {
    fn definition(&self) -> (&str, &str, &[Class]) {
        (&self.name, &self.path, &self.ancestors)
    }
}

impl PartialEq for ClassInfo {
    fn eq(&self, other: &Self) -> bool {
        self.definition() == other.definition()
    }
}

impl Eq for ClassInfo {}

impl Hash for ClassInfo {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.definition().hash(state);
    }
}

static CLASSES: Interner<ClassInfo> = Interner::new();

impl Class {
    /// Defines a class, or returns it if it is already defined exactly so.
    pub fn define(name: &str, path: &str, extends: &[Class]) -> Self {
        let mut ancestors: Vec<Class> = Vec::new();
        for &parent in extends {
            if !ancestors.contains(&parent) {
                ancestors.push(parent);
            }
        }
        for parent in extends {
            for &ancestor in parent.ancestors() {
                if !ancestors.contains(&ancestor) {
                    ancestors.push(ancestor);
                }
            }
        }
        let [name, path] = [name, path].map(Box::from);
        let info = ClassInfo { name, path, ancestors: ancestors.into(), kind: Kind::NOBODYS };
        Class(CLASSES.intern(&info, || {
            let ClassInfo { name, path, ancestors, .. } = &info;
            Box::leak(Box::new(ClassInfo {
                name: name.clone(),
                path: path.clone(),
                ancestors: ancestors.clone(),
                kind: Kind::fresh(),
            }))
        }))
    }

    /// The short name, `Linear`.
    pub fn name(self) -> &'static str {
        &self.0.name
    }

    /// The full path, `fastforward::nn::Linear`.
    pub fn path(self) -> &'static str {
        &self.0.path
    }

    /// The classes this one extends, directly or not, nearest first.
    pub fn ancestors(self) -> &'static [Class] {
        &self.0.ancestors
    }

    /// A number that differs between classes.
    pub(crate) fn id(self) -> usize {
        std::ptr::from_ref(self.0).addr()
    }

    /// The kind of nodes of this class without tags.
    #[inline]
    pub(crate) fn kind(self) -> Kind {
        self.0.kind
    }

    /// Whether this class is `other` or extends it.
    pub fn is_a(self, other: Class) -> bool {
        self == other || self.ancestors().contains(&other)
    }
}

impl PartialEq for Class {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

impl Eq for Class {}

impl Hash for Class {
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::ptr::from_ref(self.0).hash(state);
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Class({})", self.path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_definitions_are_one_class() {
        let base = Class::define("Base", "test::Base", &[]);
        let other = Class::define("Base", "other::Base", &[]);
        assert_eq!(base, Class::define("Base", "test::Base", &[]));
        assert_ne!(base, other);
    }

    #[test]
    fn ancestors_are_nearest_first_without_repeats() {
        let a = Class::define("A", "test::A", &[]);
        let b = Class::define("B", "test::B", &[a]);
        let c = Class::define("C", "test::C", &[a]);
        let d = Class::define("D", "test::D", &[b, c]);
        assert_eq!(d.ancestors(), [b, c, a]);
        assert!(d.is_a(a) && d.is_a(d) && !a.is_a(d));
    }
}
