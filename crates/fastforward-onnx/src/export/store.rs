//! Where the tensors of an export go.

use std::collections::HashSet;

use crate::dtype::DType;
use crate::error::Result;
use crate::graph::{DataFile, data};
use crate::proto::TensorProto;
use crate::tensor::n_elements;

/// Takes bytes of a tensor.
pub(super) type Put<'p> = &'p mut dyn FnMut(&[u8]) -> Result<()>;

/// Makes tensors whose packed bytes come piece by piece.
pub(super) trait Store {
    /// A tensor of the bytes that `fill` puts.
    fn store(
        &mut self,
        name: &str,
        dtype: DType,
        shape: &[usize],
        fill: &mut dyn FnMut(Put<'_>) -> Result<()>,
    ) -> Result<TensorProto>;
}

/// They are held in the message.
pub(super) struct Inline;

impl Store for Inline {
    fn store(
        &mut self,
        name: &str,
        dtype: DType,
        shape: &[usize],
        fill: &mut dyn FnMut(Put<'_>) -> Result<()>,
    ) -> Result<TensorProto> {
        let size_bytes = n_elements(shape).and_then(|count| dtype.size_bytes(count));
        let mut bytes = Vec::with_capacity(size_bytes.unwrap_or(0));
        fill(&mut |some| {
            bytes.extend_from_slice(some);
            Ok(())
        })?;
        Ok(data::raw_tensor(name, dtype, shape, bytes.into()))
    }
}

/// They go to a data file.
pub(super) struct Beside {
    pub(super) data: DataFile,
    /// The names of the tensors that went there.
    pub(super) stored: HashSet<String>,
}

impl Store for Beside {
    fn store(
        &mut self,
        name: &str,
        dtype: DType,
        shape: &[usize],
        fill: &mut dyn FnMut(Put<'_>) -> Result<()>,
    ) -> Result<TensorProto> {
        self.stored.insert(name.to_owned());
        self.data.store(name, dtype, shape, fill)
    }
}
