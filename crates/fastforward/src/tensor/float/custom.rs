//! A custom operator in two functions on slices: what it computes, and the gradient of it.

use std::borrow::Cow;
use std::cell::RefCell;

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, Layout, Shape, Tensor,
};
use half::{bf16, f16};

use super::real::Real;
use crate::tensor::{Error, Result};

/// An operator on `N` float tensors of one dtype, as functions on dense slices.
///
/// [`apply`] does the rest: it copies operands that are not contiguous, computes `f16` and `bf16` in `f32` and rounds
/// the result once, keeps no graph where nothing tracks gradients, and asks only for the gradients that are wanted.
/// Geometry (rows, channels, ...) is checked by the operator and kept in the value that implements this.
pub(crate) trait Kernel<const N: usize>: Send + Sync + 'static {
    /// The operator's name, for errors.
    fn name(&self) -> &'static str;

    /// Whether there are gradients; a backward pass through an operator without is an error.
    fn is_differentiable(&self) -> bool {
        true
    }

    /// The result, as many elements as the shape given to [`apply`] has.
    fn forward<T: Real>(&self, inputs: [&[T]; N]) -> Vec<T>;

    /// The gradient of each operand that is `wanted`, given the gradient of the result.
    fn backward<T: Real>(
        &self,
        inputs: [&[T]; N],
        output: &[T],
        grad: &[T],
        wanted: [bool; N],
    ) -> [Option<Vec<T>>; N];
}

/// Runs `kernel` on `inputs`, which it has checked; the result has the shape `shape`.
///
/// # Errors
///
/// Operands of several dtypes, of a dtype that is no float, or not on the CPU.
pub(crate) fn apply<K, const N: usize>(
    kernel: K,
    inputs: [&Tensor; N],
    shape: impl Into<Shape>,
) -> Result<Tensor>
where
    K: Kernel<N>,
    Custom<K, N>: Apply<N>,
{
    check_floats(kernel.name(), &inputs)?;
    Ok(Custom { kernel, shape: shape.into() }.apply(inputs)?)
}

/// Errors unless all tensors are on the CPU and hold floats of one dtype.
pub(crate) fn check_floats(operator: &str, inputs: &[&Tensor]) -> Result<()> {
    for tensor in inputs {
        check_cpu(operator, tensor)?;
    }
    let dtype = inputs[0].dtype();
    if !is_float(dtype) {
        return Err(Error::operator(
            operator,
            format!("an operand has dtype {}; it works on f32, f64, f16 and bf16", dtype.as_str()),
        ));
    }
    if inputs.iter().any(|t| t.dtype() != dtype) {
        let found: Vec<_> = inputs.iter().map(|t| t.dtype().as_str()).collect();
        return Err(Error::operator(
            operator,
            format!("operands have dtypes {}; convert them to one", found.join(", ")),
        ));
    }
    Ok(())
}

/// Runs an operator on `x` and parameters that may be wider, as PyTorch allows for `f16` and `bf16` beside `f32`: in `f32`,
/// the result in the dtype of `x`.
pub(crate) fn in_wider<'a, const N: usize>(
    x: &Tensor,
    parameters: [Option<&'a Tensor>; N],
    run: impl FnOnce(&Tensor, [Option<&'a Tensor>; N]) -> Result<Tensor>,
) -> Result<Tensor> {
    let narrow = matches!(x.dtype(), DType::F16 | DType::BF16);
    let mut given = parameters.iter().flatten().peekable();
    if narrow && given.peek().is_some() && given.all(|p| p.dtype() == DType::F32) {
        return Ok(run(&x.to_dtype(DType::F32)?, parameters)?.to_dtype(x.dtype())?);
    }
    run(x, parameters)
}

/// Errors unless the tensor is on the CPU.
pub(crate) fn check_cpu(operator: &str, tensor: &Tensor) -> Result<()> {
    if tensor.device().is_cpu() {
        return Ok(());
    }
    let device = tensor.device().location();
    Err(Error::operator(
        operator,
        format!("an operand is on the device {device:?}; it runs on the CPU only"),
    ))
}

/// Whether operators of this module compute on the dtype.
pub(crate) fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F64 | DType::F16 | DType::BF16)
}

/// A kernel as candle wants it: one trait for each number of operands.
pub(crate) struct Custom<K, const N: usize> {
    kernel: K,
    shape: Shape,
}

/// [`Custom`] for a number of operands that candle supports.
pub(crate) trait Apply<const N: usize> {
    fn apply(self, inputs: [&Tensor; N]) -> candle_core::Result<Tensor>;
}

impl<K: Kernel<1>> Apply<1> for Custom<K, 1> {
    fn apply(self, [a]: [&Tensor; 1]) -> candle_core::Result<Tensor> {
        if a.track_op() { a.apply_op1(self) } else { a.apply_op1_no_bwd(&self) }
    }
}

impl<K: Kernel<2>> Apply<2> for Custom<K, 2> {
    fn apply(self, [a, b]: [&Tensor; 2]) -> candle_core::Result<Tensor> {
        if a.track_op() || b.track_op() {
            a.apply_op2(b, self)
        } else {
            a.apply_op2_no_bwd(b, &self)
        }
    }
}

impl<K: Kernel<3>> Apply<3> for Custom<K, 3> {
    fn apply(self, [a, b, c]: [&Tensor; 3]) -> candle_core::Result<Tensor> {
        if a.track_op() || b.track_op() || c.track_op() {
            a.apply_op3(b, c, self)
        } else {
            a.apply_op3_no_bwd(b, c, &self)
        }
    }
}

impl<K: Kernel<1>> CustomOp1 for Custom<K, 1> {
    fn name(&self) -> &'static str {
        self.kernel.name()
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        self.forward([(s, l)])
    }

    fn bwd(&self, a: &Tensor, y: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let [a] = self.backward([a], y, g)?;
        Ok(a)
    }
}

impl<K: Kernel<2>> CustomOp2 for Custom<K, 2> {
    fn name(&self) -> &'static str {
        self.kernel.name()
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.forward([(s1, l1), (s2, l2)])
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        y: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b] = self.backward([a, b], y, g)?;
        Ok((a, b))
    }
}

impl<K: Kernel<3>> CustomOp3 for Custom<K, 3> {
    fn name(&self) -> &'static str {
        self.kernel.name()
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.forward([(s1, l1), (s2, l2), (s3, l3)])
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        y: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = self.backward([a, b, c], y, g)?;
        Ok((a, b, c))
    }
}

/// The gradient of each operand, where one is wanted.
type Gradients<const N: usize> = [Option<Tensor>; N];

impl<K: Kernel<N>, const N: usize> Custom<K, N> {
    fn forward(
        &self,
        inputs: [(&CpuStorage, &Layout); N],
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        /// The kernel in one type; `None` if an operand holds another.
        fn run<K: Kernel<N>, S: Stored, const N: usize>(
            kernel: &K,
            inputs: [(&CpuStorage, &Layout); N],
        ) -> Option<CpuStorage> {
            let slices = all(inputs.map(|(storage, layout)| S::dense(storage, layout)))?;
            let out = kernel.forward(slices.each_ref().map(|slice| &slice[..]));
            Some(S::store(out))
        }
        let found = match inputs[0].0 {
            CpuStorage::F32(_) => run::<K, f32, N>(&self.kernel, inputs),
            CpuStorage::F64(_) => run::<K, f64, N>(&self.kernel, inputs),
            CpuStorage::F16(_) => run::<K, f16, N>(&self.kernel, inputs),
            CpuStorage::BF16(_) => run::<K, bf16, N>(&self.kernel, inputs),
            _ => None,
        };
        let out = found.ok_or_else(|| mixed(self.kernel.name()))?;
        Ok((out, self.shape.clone()))
    }

    fn backward(
        &self,
        inputs: [&Tensor; N],
        output: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<Gradients<N>> {
        fn run<K: Kernel<N>, S: Stored, const N: usize>(
            kernel: &K,
            inputs: [&Tensor; N],
            operands: &[(&CpuStorage, &Layout)],
        ) -> candle_core::Result<Option<Gradients<N>>> {
            let slices: Option<Vec<_>> =
                operands.iter().map(|(storage, layout)| S::dense(storage, layout)).collect();
            let Some(slices) = slices else { return Ok(None) };
            let grads = kernel.backward(
                std::array::from_fn(|i| &slices[i][..]),
                &slices[N],
                &slices[N + 1],
                inputs.map(Tensor::track_op),
            );
            let mut tensors = [const { None }; N];
            for ((slot, grad), input) in tensors.iter_mut().zip(grads).zip(inputs) {
                if let Some(grad) = grad {
                    *slot = Some(S::tensor(grad, input.shape())?);
                }
            }
            Ok(Some(tensors))
        }
        if !self.kernel.is_differentiable() {
            let what = "it has no derivative; detach its operands";
            return Err(Error::operator(self.kernel.name(), what).into_candle());
        }
        let mut tensors: Vec<&Tensor> = inputs.to_vec();
        tensors.extend([output, grad]);
        let mut found = None;
        with_storages(&tensors, |operands| {
            found = match operands[0].0 {
                CpuStorage::F32(_) => run::<K, f32, N>(&self.kernel, inputs, operands)?,
                CpuStorage::F64(_) => run::<K, f64, N>(&self.kernel, inputs, operands)?,
                CpuStorage::F16(_) => run::<K, f16, N>(&self.kernel, inputs, operands)?,
                CpuStorage::BF16(_) => run::<K, bf16, N>(&self.kernel, inputs, operands)?,
                _ => None,
            };
            Ok(())
        })?;
        found.ok_or_else(|| mixed(self.kernel.name()))
    }
}

fn mixed(operator: &str) -> candle_core::Error {
    Error::operator(
        operator,
        "the operands and the gradient have several dtypes; convert them to one",
    )
    .into_candle()
}

fn all<T, const N: usize>(options: [Option<T>; N]) -> Option<[T; N]> {
    let values: Option<Vec<T>> = options.into_iter().collect();
    values?.try_into().ok()
}

/// An element type of float tensors, with the type that is computed in.
pub(crate) trait Stored: Copy + Send + Sync + 'static {
    /// The type that is computed in: `f32` for what is narrower.
    type Compute: Real;
    /// The elements of a tensor in row-major order; borrowed where they lie so already. `None` for another dtype.
    fn dense<'a>(storage: &'a CpuStorage, layout: &Layout) -> Option<Cow<'a, [Self::Compute]>>;
    /// Rounds to this type.
    fn store(values: Vec<Self::Compute>) -> CpuStorage;
    /// A tensor that tracks nothing.
    fn tensor(values: Vec<Self::Compute>, shape: &Shape) -> candle_core::Result<Tensor>;
}

macro_rules! stored_as_is {
    ($t:ty, $variant:ident) => {
        impl Stored for $t {
            type Compute = $t;

            fn dense<'a>(storage: &'a CpuStorage, layout: &Layout) -> Option<Cow<'a, [$t]>> {
                match storage {
                    CpuStorage::$variant(data) => Some(dense(data, layout)),
                    _ => None,
                }
            }

            fn store(values: Vec<$t>) -> CpuStorage {
                CpuStorage::$variant(values)
            }

            fn tensor(values: Vec<$t>, shape: &Shape) -> candle_core::Result<Tensor> {
                Tensor::from_vec(values, shape.clone(), &Device::Cpu)
            }
        }
    };
}

macro_rules! stored_narrow {
    ($t:ty, $variant:ident) => {
        impl Stored for $t {
            type Compute = f32;

            fn dense<'a>(storage: &'a CpuStorage, layout: &Layout) -> Option<Cow<'a, [f32]>> {
                match storage {
                    CpuStorage::$variant(data) => {
                        Some(Cow::Owned(dense(data, layout).iter().map(|v| v.to_f32()).collect()))
                    }
                    _ => None,
                }
            }

            fn store(values: Vec<f32>) -> CpuStorage {
                CpuStorage::$variant(values.into_iter().map(<$t>::from_f32).collect())
            }

            fn tensor(values: Vec<f32>, shape: &Shape) -> candle_core::Result<Tensor> {
                let values: Vec<$t> = values.into_iter().map(<$t>::from_f32).collect();
                Tensor::from_vec(values, shape.clone(), &Device::Cpu)
            }
        }
    };
}

stored_as_is!(f32, F32);
stored_as_is!(f64, F64);
stored_narrow!(f16, F16);
stored_narrow!(bf16, BF16);

/// The elements in row-major order: the slice itself where the layout is contiguous, else a copy.
pub(crate) fn dense<'a, T: Copy>(data: &'a [T], layout: &Layout) -> Cow<'a, [T]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Cow::Borrowed(&data[start..end]),
        None => {
            let mut out = Vec::with_capacity(layout.shape().elem_count());
            gather(data, layout.start_offset(), layout.dims(), layout.stride(), &mut out);
            Cow::Owned(out)
        }
    }
}

fn gather<T: Copy>(data: &[T], at: usize, dims: &[usize], strides: &[usize], out: &mut Vec<T>) {
    match (dims, strides) {
        ([], _) => out.push(data[at]),
        ([n], [1]) => out.extend_from_slice(&data[at..at + n]),
        ([n], [0]) => out.extend(std::iter::repeat_n(data[at], *n)),
        ([n], [stride]) => out.extend((0..*n).map(|i| data[at + i * stride])),
        ([n, dims @ ..], [stride, strides @ ..]) => {
            for i in 0..*n {
                gather(data, at + i * stride, dims, strides, out);
            }
        }
        // A layout has as many strides as dimensions.
        (_, []) => {}
    }
}

/// What `f` makes of the elements of `f32` tensors, each in row-major order.
///
/// # Errors
/// Tensors of another type, or not on the CPU.
pub(crate) fn from_floats<const N: usize>(
    tensors: [&Tensor; N],
    mut f: impl FnMut([&[f32]; N]) -> Vec<f32>,
) -> Result<Vec<f32>> {
    let mut out = Vec::new();
    with_storages(&tensors, |operands| {
        let slices: Option<Vec<_>> =
            operands.iter().map(|(storage, layout)| f32::dense(storage, layout)).collect();
        let slices = slices.ok_or_else(|| mixed("reading floats"))?;
        out = f(std::array::from_fn(|i| &slices[i][..]));
        Ok(())
    })?;
    Ok(out)
}

/// Gives the storages of all tensors to `f` at once.
///
/// The locks are taken as candle takes them for an operator: a tensor may occur twice, also while another thread waits
/// to write to it. [`Tensor::storage_and_layout`] would deadlock there.
pub(crate) fn with_storages(
    tensors: &[&Tensor],
    mut f: impl FnMut(&[(&CpuStorage, &Layout)]) -> candle_core::Result<()>,
) -> candle_core::Result<()> {
    visit(tensors, &[], &mut f)
}

type Visitor<'a> = dyn FnMut(&[(&CpuStorage, &Layout)]) -> candle_core::Result<()> + 'a;

fn visit(
    tensors: &[&Tensor],
    held: &[(&CpuStorage, &Layout)],
    f: &mut Visitor<'_>,
) -> candle_core::Result<()> {
    match tensors.split_first() {
        None => f(held),
        Some((first, rest)) => {
            first.apply_op1_no_bwd(&Visit { rest, held, f: RefCell::new(f) })?;
            Ok(())
        }
    }
}

/// An operator that looks at its operand and goes on with the next tensor; its result is empty.
struct Visit<'a, 'f> {
    rest: &'a [&'a Tensor],
    held: &'a [(&'a CpuStorage, &'a Layout)],
    f: RefCell<&'a mut Visitor<'f>>,
}

impl CustomOp1 for Visit<'_, '_> {
    fn name(&self) -> &'static str {
        "reading a tensor"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let mut held = self.held.to_vec();
        held.push((storage, layout));
        visit(self.rest, &held, *self.f.borrow_mut())?;
        Ok((CpuStorage::U8(Vec::new()), Shape::from(0)))
    }
}
