//! Lists and maps of modules under the names that torch's users know.
//!
//! Any `Vec`, array, `BTreeMap` or `IndexMap` of modules is a module of these classes; nothing else is needed to hold children.

use crate::module::Module;

/// Modules in a list, named `0`, `1`, ...: a `Vec`. By default of any modules.
///
/// ```
/// use fastforward::module::Outline;
/// use fastforward::nn::{Identity, ModuleList};
/// let list: ModuleList<Identity> = vec![Identity, Identity];
/// assert_eq!(Outline::new(&list).to_string(), "ModuleList\n  0: Identity\n  1: Identity\n");
/// ```
pub type ModuleList<M = Box<dyn Module>> = Vec<M>;

/// Modules by name, in the order of insertion: an `IndexMap`. By default of any modules.
///
/// ```
/// use fastforward::module::Outline;
/// use fastforward::nn::{Identity, ModuleDict};
/// let mut dict: ModuleDict<Identity> = ModuleDict::new();
/// dict.insert("second".into(), Identity);
/// dict.insert("first".into(), Identity);
/// assert_eq!(Outline::new(&dict).to_string(), "ModuleDict\n  second: Identity\n  first: Identity\n");
/// ```
pub type ModuleDict<M = Box<dyn Module>> = indexmap::IndexMap<String, M>;
