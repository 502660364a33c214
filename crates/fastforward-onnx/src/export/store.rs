//! Where the tensors of an export go.

use std::collections::HashSet;

use crate::dtype::DType;
use crate::error::Result;
use crate::graph::{DataFile, Fill, filled_tensor};
use crate::proto::TensorProto;

/// Takes bytes of a tensor.
pub(super) type Put<'p> = &'p mut dyn FnMut(&[u8]) -> Result<()>;

/// Makes tensors whose packed bytes come piece by piece.
pub(super) enum Store<'s> {
    /// They are held in the message.
    Inline,
    /// They go to a data file.
    Beside {
        data: &'s mut DataFile,
        /// The names of the tensors that went there.
        stored: &'s mut HashSet<String>,
    },
}

impl Store<'_> {
    /// A tensor of the bytes that `fill` puts.
    pub(super) fn store(
        &mut self,
        name: &str,
        dtype: DType,
        shape: &[usize],
        fill: &mut Fill<'_>,
    ) -> Result<TensorProto> {
        match self {
            Self::Inline => filled_tensor(name, dtype, shape, fill),
            Self::Beside { data, stored } => {
                stored.insert(name.to_owned());
                data.store(name, dtype, shape, fill)
            }
        }
    }
}
