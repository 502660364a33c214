//! Products of 8-bit codes in integers.

use super::dispatch::{Kernel, Predicate};

/// The operators, when their kernels run, and the kernels.
pub(super) fn built_in() -> Vec<(&'static str, Predicate, Kernel)> {
    vec![]
}
