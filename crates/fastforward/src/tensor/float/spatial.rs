//! What the operators over spatial axes share: batch axes, and checks of settings that report all problems at once.

use candle_core::Tensor;

use crate::tensor::{Error, Result};

/// All that is wrong with the operands and settings of one operator, for one message.
pub(super) struct Problems {
    operator: &'static str,
    found: Vec<String>,
}

impl Problems {
    pub(super) fn new(operator: &'static str) -> Self {
        Self { operator, found: Vec::new() }
    }

    pub(super) fn add(&mut self, problem: String) {
        self.found.push(problem);
    }

    /// Adds a problem unless `right`.
    pub(super) fn check(&mut self, right: bool, problem: impl FnOnce() -> String) {
        if !right {
            self.add(problem());
        }
    }

    /// Adds a problem if a number is zero.
    pub(super) fn positive(&mut self, what: &str, numbers: &[usize]) {
        self.check(!numbers.contains(&0), || format!("{what} must be positive, found {numbers:?}"));
    }

    /// An error if there were problems.
    pub(super) fn stop(&mut self) -> Result<()> {
        match self.found.is_empty() {
            true => Ok(()),
            false => Err(Error::operator(self.operator, self.found.join("; "))),
        }
    }
}

/// The input with a batch axis, and whether that had to be added.
pub(super) fn batched(operator: &'static str, x: &Tensor, axes: usize) -> Result<(Tensor, bool)> {
    match x.rank() {
        rank if rank == axes + 2 => Ok((x.clone(), false)),
        rank if rank == axes + 1 => Ok((x.unsqueeze(0)?, true)),
        _ => Err(Error::operator(
            operator,
            format!(
                "input must have {} axes, or {} without the batch, found {:?}",
                axes + 2,
                axes + 1,
                x.dims()
            ),
        )),
    }
}

/// The first two axes of a shape and its `N` others.
pub(super) fn split<const N: usize>(dims: &[usize]) -> Option<([usize; 2], [usize; N])> {
    let (first, rest) = dims.split_first_chunk::<2>()?;
    Some((*first, rest.try_into().ok()?))
}

/// The axes as the last of three, the others filled.
pub(super) fn three<T: Copy, const N: usize>(axes: [T; N], fill: T) -> [T; 3] {
    let mut all = [fill; 3];
    all[3 - N..].copy_from_slice(&axes);
    all
}

/// Positions from the first tap of a kernel to its last, both counted; `None` on overflow. The kernel is not empty.
pub(super) fn reach(kernel: usize, dilation: usize) -> Option<usize> {
    (kernel - 1).checked_mul(dilation)?.checked_add(1)
}

/// Checks that a result of this shape can be counted in memory.
pub(super) fn check_size(problems: &mut Problems, dims: &[usize]) {
    let bytes = dims.iter().try_fold(8usize, |bytes, n| bytes.checked_mul(*n));
    problems.check(bytes.is_some_and(|bytes| isize::try_from(bytes).is_ok()), || {
        format!("the result would have the shape {dims:?}, more than memory can hold")
    });
}
