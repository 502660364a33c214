//! Checks of what a layer is made of.

use super::Param;
use crate::tensor::{Error, Result};

/// All that is wrong with the parameters and settings of a layer, for one message.
pub(super) struct Problems {
    layer: &'static str,
    found: Vec<String>,
}

impl Problems {
    pub(super) fn new(layer: &'static str) -> Self {
        Self { layer, found: Vec::new() }
    }

    /// Adds a problem unless `right`.
    pub(super) fn check(&mut self, right: bool, problem: impl FnOnce() -> String) {
        if !right {
            self.found.push(problem());
        }
    }

    /// Adds a problem unless a parameter, if it is there, has this shape.
    pub(super) fn shape<'a>(
        &mut self,
        name: &str,
        parameter: impl Into<Option<&'a Param>>,
        expected: &[usize],
    ) {
        if let Some(parameter) = parameter.into() {
            self.check(parameter.dims() == expected, || {
                format!("{name} has shape {:?}, expected {expected:?}", parameter.dims())
            });
        }
    }

    /// An error if there were problems.
    pub(super) fn stop(self) -> Result<()> {
        match self.found.is_empty() {
            true => Ok(()),
            false => Err(Error::operator(self.layer, self.found.join("; "))),
        }
    }
}
