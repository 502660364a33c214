//! What the operators over spatial axes share: batch axes, checks of settings, access to elements.

#[cfg(test)]
pub(super) mod check;

use candle_core::{CpuStorage, DType, Layout, Storage, Tensor, WithDType};

use crate::tensor::{Error, Result};

/// The element types that kernels compute with.
pub(super) trait Element: WithDType + ff_kernels::Real + Into<f64> + Default {}
impl Element for f32 {}
impl Element for f64 {}

/// Evaluates an expression, which is a candle result, with `$T` standing for the element type of a dtype.
macro_rules! by_dtype {
    ($operator:expr, $dtype:expr, $T:ident => $value:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $T = f32;
                $value
            }
            candle_core::DType::F64 => {
                type $T = f64;
                $value
            }
            other => Err(crate::tensor::Error::operator(
                $operator,
                format!("computes in f32 or f64, found {}", other.as_str()),
            )
            .into_candle()),
        }
    };
}
pub(super) use by_dtype;

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

/// The dtype that all operands share, a float one; they must be on the CPU.
pub(super) fn common_float(
    operator: &'static str,
    operands: &[(&str, Option<&Tensor>)],
) -> Result<DType> {
    let mut problems = Problems::new(operator);
    let present = || operands.iter().filter_map(|(name, tensor)| Some((name, (*tensor)?)));
    let mut dtypes = present().map(|(_, tensor)| tensor.dtype());
    let dtype = dtypes.next().unwrap_or(DType::F32);
    problems.check(dtypes.all(|other| other == dtype), || {
        let found: Vec<_> =
            present().map(|(name, tensor)| format!("{name} {}", tensor.dtype().as_str())).collect();
        format!("all operands must have one dtype, found {}", found.join(", "))
    });
    let float = matches!(dtype, DType::F16 | DType::BF16 | DType::F32 | DType::F64);
    problems.check(float, || {
        format!("operands must be f16, bf16, f32 or f64, found {}", dtype.as_str())
    });
    for (name, tensor) in present() {
        problems.check(tensor.device().is_cpu(), || {
            format!("runs on the CPU only, {name} is on {:?}", tensor.device().location())
        });
    }
    problems.stop()?;
    Ok(dtype)
}

/// The tensor in the dtype that kernels compute in: f16 and bf16 become f32; contiguous.
pub(super) fn widened(tensor: &Tensor) -> Result<Tensor> {
    let tensor = match tensor.dtype() {
        DType::F16 | DType::BF16 => tensor.to_dtype(DType::F32)?,
        _ => tensor.clone(),
    };
    Ok(tensor.contiguous()?)
}

/// The elements of a contiguous operand of a custom operator.
pub(super) fn elements<'a, T: Element>(
    operator: &'static str,
    storage: &'a CpuStorage,
    layout: &Layout,
) -> candle_core::Result<&'a [T]> {
    let all = T::cpu_storage_as_slice(storage)?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&all[start..end]),
        None => Err(Error::operator(operator, "operands must be contiguous").into_candle()),
    }
}

/// Calls `compute` with the elements of tensors on the CPU, copied only where they are not contiguous.
pub(super) fn with_elements<T: Element, R, const N: usize>(
    operator: &'static str,
    tensors: [&Tensor; N],
    compute: impl FnOnce([&[T]; N]) -> R,
) -> candle_core::Result<R> {
    let tensors = tensors
        .iter()
        .map(|tensor| tensor.contiguous())
        .collect::<candle_core::Result<Vec<_>>>()?;
    let guards: Vec<_> = tensors.iter().map(|tensor| tensor.storage_and_layout()).collect();
    let mut slices = [&[][..]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&guards) {
        *slice = match &**storage {
            Storage::Cpu(storage) => elements(operator, storage, layout)?,
            other => {
                let place = other.device().location();
                let what = format!("runs on the CPU only, an operand is on {place:?}");
                return Err(Error::operator(operator, what).into_candle());
            }
        };
    }
    Ok(compute(slices))
}
