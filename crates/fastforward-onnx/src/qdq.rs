//! `QuantizeLinear` and `DequantizeLinear` as ONNX defines them, for every type
//! and layout.
//!
//! The arithmetic on integers is that of `ff-kernels`; this module knows the
//! operators' shapes, types and attributes, and the narrow floats. The
//! convention differs from the quantizers' (spec §4.2): the zero point is added
//! after rounding, so ties are decided before it,
//! `y = saturate(round_half_even(x / scale) + zero_point)`.

mod decoder;

use std::borrow::Cow;
use std::path::Path;

use ff_kernels::{KernelError, LinearParameters, Tiling, dynamic_linear_parameters, min_max};
use half::{bf16, f16};

use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::check_describe as describe;
use crate::graph::data;
use crate::minifloat::MiniFloat;
use crate::proto::{NodeProto, TensorProto};
use crate::tensor::n_elements;

pub(crate) use decoder::Decoder;

/// Which scale belongs to which element.
///
/// ```
/// use fastforward_onnx::qdq::{Layout, dequantize_linear};
///
/// // Blocks of two along the last axis, the last one partial.
/// let layout = Layout::new(&[1, 3], &[1, 2], 1, 2)?;
/// let y = dequantize_linear(&[4, 4, 4], &layout, &[0.5, 2.0], None)?;
/// assert_eq!(y, [2.0, 2.0, 8.0]);
/// # Ok::<(), fastforward_onnx::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    shape: Vec<usize>,
    /// Elements of the tensor.
    len: usize,
    /// Number of scales.
    n_scales: usize,
    /// Product of the sizes after the axis.
    inner: usize,
    /// Size of the axis; 1 per tensor.
    axis_len: usize,
    /// Scales along the axis.
    n_blocks: usize,
    /// Neighbours along the axis that share a scale.
    block_len: usize,
    /// The axis, where not all elements share one scale.
    axis: Option<usize>,
    /// Whether each position beside the axis has scales of its own.
    is_blocked: bool,
}

impl Layout {
    /// The layout that the shapes of input and scale, `axis` and `block_size` state.
    ///
    /// - a scale of one element (and no `block_size`): per tensor;
    /// - a scale of rank 1: per axis, its length that of the axis;
    /// - `block_size` > 0: the scale has the input's shape, except for
    ///   `ceil(n / block_size)` instead of `n` on the axis.
    ///
    /// # Errors
    /// `InvalidGraph` when the shapes contradict each other.
    pub fn new(shape: &[usize], scale_shape: &[usize], axis: i64, block_size: i64) -> Result<Self> {
        let invalid = |problem: String| Err(Error::new(ErrorKind::InvalidGraph, problem));
        let (Some(len), Some(n_scales)) = (n_elements(shape), n_elements(scale_shape)) else {
            return invalid(format!("shape {shape:?} has too many elements"));
        };
        if block_size < 0 {
            return invalid(format!("`block_size` is {block_size}, expected 0 or more"));
        }
        if block_size == 0 && n_scales == 1 && scale_shape.len() <= 1 {
            let per_tensor = Self {
                shape: shape.to_vec(),
                len,
                n_scales,
                inner: len.max(1),
                axis_len: 1,
                n_blocks: 1,
                block_len: 1,
                axis: None,
                is_blocked: false,
            };
            return Ok(per_tensor);
        }
        let rank = shape.len() as i64;
        let axis = match if axis < 0 { axis + rank } else { axis } {
            axis if (0..rank).contains(&axis) => axis as usize,
            _ => return invalid(format!("axis {axis} does not exist in shape {shape:?}")),
        };
        let inner = shape[axis + 1..].iter().product::<usize>();
        let axis_len = shape[axis];
        if block_size == 0 {
            if scale_shape != [axis_len] {
                return invalid(format!(
                    "scale of shape {scale_shape:?}, expected [{axis_len}] for axis {axis} of shape {shape:?}"
                ));
            }
            return Ok(Self {
                shape: shape.to_vec(),
                len,
                n_scales,
                inner,
                axis_len,
                n_blocks: axis_len,
                block_len: 1,
                axis: Some(axis),
                is_blocked: false,
            });
        }
        let block_len = usize::try_from(block_size).unwrap_or(usize::MAX);
        let n_blocks = axis_len.div_ceil(block_len);
        let mut expected = shape.to_vec();
        expected[axis] = n_blocks;
        if scale_shape != expected {
            return invalid(format!(
                "scale of shape {scale_shape:?}, expected {expected:?} for blocks of {block_size} \
                 along axis {axis} of shape {shape:?}"
            ));
        }
        Ok(Self {
            shape: shape.to_vec(),
            len,
            n_scales,
            inner,
            axis_len,
            n_blocks,
            block_len,
            axis: Some(axis),
            is_blocked: true,
        })
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The number of scales.
    pub fn n_scales(&self) -> usize {
        self.n_scales
    }

    /// The position of the scale of the element at `position`.
    pub fn scale_of(&self, position: usize) -> usize {
        let block = position / self.inner % self.axis_len / self.block_len;
        if !self.is_blocked {
            return block;
        }
        let outer = position / (self.inner * self.axis_len);
        (outer * self.n_blocks + block) * self.inner + position % self.inner
    }

    /// The tiles of this layout; each element its own where the last block is partial.
    fn tiling(&self) -> Result<Tiling, KernelError> {
        let Some(axis) = self.axis else {
            return Tiling::whole(&self.shape);
        };
        let mut tile = if self.is_blocked { vec![1; self.shape.len()] } else { self.shape.clone() };
        tile[axis] = if self.has_partial_block() { 1 } else { self.block_len.min(self.axis_len) };
        Tiling::new(&self.shape, &tile)
    }

    fn has_partial_block(&self) -> bool {
        self.block_len < self.axis_len && !self.axis_len.is_multiple_of(self.block_len)
    }

    /// One value for each tile of [`Layout::tiling`].
    fn per_tile<'v, T: Copy>(&self, values: &'v [T]) -> Cow<'v, [T]> {
        if self.has_partial_block() && values.len() == self.n_scales {
            (0..self.len).map(|position| values[self.scale_of(position)]).collect()
        } else {
            Cow::Borrowed(values)
        }
    }

    fn check(&self, n_values: usize, n_scales: usize) -> Result<()> {
        let wrong = |what: &str, found: usize, expected: usize| {
            Err(Error::new(ErrorKind::Input, format!("{found} {what}, expected {expected}")))
        };
        match (n_values == self.len, n_scales == self.n_scales) {
            (false, _) => wrong("elements", n_values, self.len),
            (_, false) => wrong("scales", n_scales, self.n_scales),
            _ => Ok(()),
        }
    }
}

fn kernel(error: KernelError) -> Error {
    Error::new(ErrorKind::Input, error.to_string()).caused_by(error)
}

/// Quantizes to the integers of `dtype`:
/// `y = saturate(round_half_even(x / scale) + zero_point)`.
///
/// Infinities saturate. `zero_point` is 0 where it is not given.
///
/// # Errors
/// `Input` when lengths do not fit the layout, `dtype` is no integer type of at
/// most 32 bits, a scale is not positive and finite, a zero point is no code of
/// `dtype`, or `x` holds NaN.
///
/// ```
/// use fastforward_onnx::{dtype::DType, qdq::{Layout, quantize_linear}};
///
/// let layout = Layout::new(&[3], &[], 0, 0)?;
/// let y = quantize_linear(&[0.5, 1.5, -9.0], &layout, &[1.0], Some(&[3]), DType::U4)?;
/// assert_eq!(y, [3, 5, 0]); // ties to even, then the zero point
/// # Ok::<(), fastforward_onnx::Error>(())
/// ```
pub fn quantize_linear(
    x: &[f32],
    layout: &Layout,
    scale: &[f32],
    zero_point: Option<&[i32]>,
    dtype: DType,
) -> Result<Vec<i32>> {
    layout.check(x.len(), scale.len())?;
    let bounds = dtype
        .int_range()
        .and_then(|(low, high)| Some((i32::try_from(low).ok()?, i32::try_from(high).ok()?)));
    let bounds = bounds.ok_or_else(|| {
        Error::new(ErrorKind::Input, format!("{dtype} has no integers to quantize to"))
    })?;
    let (scale, zero_point) = (layout.per_tile(scale), zero_point.map(|z| layout.per_tile(z)));
    let parameters = LinearParameters { scale: &scale, zero_point: zero_point.as_deref() };
    let mut codes = vec![0; x.len()];
    let tiling = layout.tiling().map_err(kernel)?;
    ff_kernels::quantize_linear(x, &tiling, parameters, bounds, &mut codes).map_err(kernel)?;
    Ok(codes)
}

/// Dequantizes integers: `x = (y - zero_point) · scale`.
///
/// Scales may be anything: files hold zero for channels without a weight.
///
/// # Errors
/// `Input` when lengths do not fit the layout, or a zero point lies beyond 2^24.
pub fn dequantize_linear(
    codes: &[i32],
    layout: &Layout,
    scale: &[f32],
    zero_point: Option<&[i32]>,
) -> Result<Vec<f32>> {
    layout.check(codes.len(), scale.len())?;
    // The kernel wants steps; what is none is multiplied afterwards, which is the same product.
    let is_step = |scale: f32| scale > 0.0 && scale.is_finite();
    let steps: Vec<f32> = scale.iter().map(|&s| if is_step(s) { s } else { 1.0 }).collect();
    let (tile_steps, zero_point) =
        (layout.per_tile(&steps), zero_point.map(|z| layout.per_tile(z)));
    let parameters = LinearParameters { scale: &tile_steps, zero_point: zero_point.as_deref() };
    let mut values = vec![0.0; codes.len()];
    let tiling = layout.tiling().map_err(kernel)?;
    ff_kernels::dequantize_linear(codes, &tiling, parameters, &mut values).map_err(kernel)?;
    if steps != scale {
        for (position, value) in values.iter_mut().enumerate() {
            let scale = scale[layout.scale_of(position)];
            if !is_step(scale) {
                *value *= scale;
            }
        }
    }
    Ok(values)
}

/// What `DynamicQuantizeLinear` computes: codes, scale, zero point.
///
/// The range is widened to hold zero; `scale = (max - min) / 255`,
/// `zero_point = saturate(round(-min / scale))`, codes as [`quantize_linear`]
/// to `uint8`. A tensor of zeros has scale 1.
///
/// # Errors
/// `Input` for an empty tensor, and for NaN and infinities.
pub fn dynamic_quantize_linear(x: &[f32]) -> Result<(Vec<i32>, f32, i32)> {
    let layout = Layout::new(&[x.len()], &[], 0, 0)?;
    let range = min_max(x, &layout.tiling().map_err(kernel)?).map_err(kernel)?;
    let (scale, zero_point) = dynamic_linear_parameters(&range).map_err(kernel)?;
    let zero_point = i32::from(zero_point);
    let codes = quantize_linear(x, &layout, &[scale], Some(&[zero_point]), DType::U8)?;
    Ok((codes, scale, zero_point))
}

/// Whether `node` is one of the two operators, also under the name that
/// onnxruntime gave them before the standard had their types.
pub(crate) fn is_quantize(node: &NodeProto) -> bool {
    node.op_type() == "QuantizeLinear" && is_known_domain(node)
}

/// See [`is_quantize`].
pub(crate) fn is_dequantize(node: &NodeProto) -> bool {
    node.op_type() == "DequantizeLinear" && is_known_domain(node)
}

fn is_known_domain(node: &NodeProto) -> bool {
    matches!(node.domain(), "" | "ai.onnx" | "com.microsoft")
}

/// The type that a `QuantizeLinear` node produces; `zero_point` is the type of
/// its third input.
pub(crate) fn quantized_dtype(node: &NodeProto, zero_point: Option<DType>) -> Result<DType> {
    let stated = match node.int_or("output_dtype", 0) {
        0 => None,
        number => Some(DType::from_onnx(i32::try_from(number).unwrap_or(0))?),
    };
    match (stated, zero_point) {
        (Some(stated), Some(found)) if stated != found => Err(Error::new(
            ErrorKind::InvalidGraph,
            format!("`output_dtype` is {stated}, but the zero point is {found}"),
        )),
        (stated, found) => Ok(stated.or(found).unwrap_or(DType::U8)),
    }
}

/// Computes a `QuantizeLinear` or `DequantizeLinear` node whose inputs are known.
///
/// Knows every integer type of 2 to 32 bits, every 4- and 8-bit float, scales
/// in `float32`, `float16` and `bfloat16`, per tensor, per axis and in blocks,
/// and the attributes `axis`, `block_size`, `output_dtype`, `saturate` and
/// `precision`. External data of the inputs is read from `folder`.
///
/// # Errors
/// `Unsupported` for a type that the operators do not take, by its name;
/// `InvalidGraph` when the inputs contradict each other.
pub fn evaluate(
    node: &NodeProto,
    inputs: &[Option<&TensorProto>],
    folder: Option<&Path>,
) -> Result<TensorProto> {
    let place = |error: Error| error.within(describe(node));
    let result = match (is_quantize(node), is_dequantize(node)) {
        (true, _) => Operands::read(node, inputs, folder).and_then(|o| o.quantize(node)),
        (_, true) => Operands::read(node, inputs, folder).and_then(|o| o.dequantize(node)),
        _ => Err(Error::new(ErrorKind::Unsupported, "neither QuantizeLinear nor DequantizeLinear")),
    };
    result.map_err(place)
}

/// The inputs of either operator, decoded.
struct Operands<'a> {
    x: &'a TensorProto,
    x_dtype: DType,
    shape: Vec<usize>,
    layout: Layout,
    scale: Vec<f32>,
    scale_dtype: DType,
    zero_point: Option<(DType, Vec<i32>)>,
    folder: Option<&'a Path>,
}

impl<'a> Operands<'a> {
    fn read(
        node: &NodeProto,
        inputs: &[Option<&'a TensorProto>],
        folder: Option<&'a Path>,
    ) -> Result<Self> {
        let input = |position: usize| inputs.get(position).copied().flatten();
        let (Some(x), Some(scale)) = (input(0), input(1)) else {
            return Err(Error::new(ErrorKind::InvalidGraph, "expected an input and a scale"));
        };
        let (x_dtype, shape) = data::dtype_and_shape(x)?;
        let (scale_dtype, scale_shape) = data::dtype_and_shape(scale)?;
        if !matches!(scale_dtype, DType::F32 | DType::F16 | DType::BF16 | DType::F8E8M0) {
            return Err(unsupported("scale", scale_dtype));
        }
        let layout = Layout::new(
            &shape,
            &scale_shape,
            node.int_or("axis", 1),
            node.int_or("block_size", 0),
        )?;
        let zero_point = match input(2) {
            None => None,
            Some(tensor) => {
                let (dtype, zero_shape) = data::dtype_and_shape(tensor)?;
                if n_elements(&zero_shape) != n_elements(&scale_shape) {
                    return Err(Error::new(
                        ErrorKind::InvalidGraph,
                        format!(
                            "zero point of shape {zero_shape:?}, expected that of the scale, {scale_shape:?}"
                        ),
                    ));
                }
                let values = if dtype.is_int() {
                    codes(tensor, folder)?
                } else {
                    let values = data::to_f32(tensor, folder)?;
                    if values.iter().any(|&value| value != 0.0) {
                        return Err(Error::new(
                            ErrorKind::InvalidGraph,
                            format!("zero point of type {dtype} is not zero"),
                        ));
                    }
                    vec![0; values.len()]
                };
                Some((dtype, values))
            }
        };
        let scale = data::to_f32(scale, folder)?;
        Ok(Self { x, x_dtype, shape, layout, scale, scale_dtype, zero_point, folder })
    }

    fn quantize(self, node: &NodeProto) -> Result<TensorProto> {
        if !matches!(self.x_dtype, DType::F32 | DType::F16 | DType::BF16 | DType::I32) {
            return Err(unsupported("input", self.x_dtype));
        }
        let dtype = quantized_dtype(node, self.zero_point.as_ref().map(|(dtype, _)| *dtype))?;
        let precision = match node.int_or("precision", 0) {
            0 => self.scale_dtype,
            number => DType::from_onnx(i32::try_from(number).unwrap_or(0))?,
        };
        let round = rounding(precision).ok_or_else(|| unsupported("precision", precision))?;
        let divide = |x: f32, scale: f32| round(round(x) / round(scale));
        let x = data::to_f32(self.x, self.folder)?;
        let zero_point = self.zero_point.as_ref().map(|(_, values)| values.as_slice());
        let name = node.output.first().map_or("", String::as_str);

        let codes: Vec<i64> = if let Some(format) = MiniFloat::of(dtype) {
            self.layout.check(x.len(), self.scale.len())?;
            let saturate = node.int_or("saturate", 1) != 0;
            // The zero point of a narrow float is 0; adding it takes the sign from
            // -0, as the reference evaluator does for the types below 8 bits.
            let adds_zero = dtype.bits() < 8 && zero_point.is_some();
            let code = |(position, &x): (usize, &f32)| {
                let x = if adds_zero { x + 0.0 } else { x };
                i64::from(
                    format.encode(divide(x, self.scale[self.layout.scale_of(position)]), saturate),
                )
            };
            x.iter().enumerate().map(code).collect()
        } else if dtype.is_int() && dtype.bits() <= 16 {
            {
                // What is not divided in single precision is divided here, and then by one.
                let (x, scale) = match precision {
                    DType::F32 | DType::F8E8M0 => (x, self.scale),
                    _ => {
                        let divided = |(position, &x): (usize, &f32)| {
                            divide(x, self.scale[self.layout.scale_of(position)])
                        };
                        let x = x.iter().enumerate().map(divided).collect();
                        (x, vec![1.0; self.layout.n_scales()])
                    }
                };
                let codes = quantize_linear(&x, &self.layout, &scale, zero_point, dtype)?;
                codes.into_iter().map(i64::from).collect()
            }
        } else {
            return Err(unsupported("output", dtype));
        };
        Ok(data::raw_tensor(name, dtype, &self.shape, data::pack_codes(dtype, &codes).into()))
    }

    /// Fails unless the zero point has the type of the codes.
    fn check_zero_point(&self) -> Result<()> {
        match &self.zero_point {
            Some((dtype, _)) if *dtype != self.x_dtype => Err(Error::new(
                ErrorKind::InvalidGraph,
                format!("zero point of type {dtype}, expected that of the input, {}", self.x_dtype),
            )),
            _ => Ok(()),
        }
    }

    fn dequantize(self, node: &NodeProto) -> Result<TensorProto> {
        self.check_zero_point()?;
        let zero_point = self.zero_point.as_ref().map(|(_, values)| values.as_slice());
        let values = if self.x_dtype.is_int() && self.x_dtype.bits() <= 32 {
            let codes = codes(self.x, self.folder)?;
            dequantize_linear(&codes, &self.layout, &self.scale, zero_point)?
        } else if self.x_dtype.is_minifloat() {
            let values = data::to_f32(self.x, self.folder)?;
            self.layout.check(values.len(), self.scale.len())?;
            let scaled = |(position, value): (usize, f32)| {
                value * self.scale[self.layout.scale_of(position)]
            };
            values.into_iter().enumerate().map(scaled).collect()
        } else {
            return Err(unsupported("input", self.x_dtype));
        };
        let dtype = match node.int_or("output_dtype", 0) {
            0 if self.scale_dtype == DType::F8E8M0 => DType::F32,
            0 => self.scale_dtype,
            number => DType::from_onnx(i32::try_from(number).unwrap_or(0))?,
        };
        let name = node.output.first().map_or("", String::as_str);
        data::tensor_from_floats(name, dtype, &self.shape, &values)
            .ok_or_else(|| unsupported("output", dtype))
    }
}

/// Integers of at most 32 bits.
fn codes(tensor: &TensorProto, folder: Option<&Path>) -> Result<Vec<i32>> {
    let wide = data::to_i64(tensor, folder)?;
    let narrow: Vec<i32> = wide.iter().filter_map(|&code| i32::try_from(code).ok()).collect();
    if narrow.len() != wide.len() {
        return Err(Error::new(ErrorKind::Unsupported, "integers beyond 32 bits with a sign"));
    }
    Ok(narrow)
}

/// The function that rounds to a type of the division, or `None` for others.
fn rounding(dtype: DType) -> Option<fn(f32) -> f32> {
    match dtype {
        DType::F32 | DType::F8E8M0 => Some(|x| x),
        DType::F16 => Some(|x| f16::from_f32(x).to_f32()),
        DType::BF16 => Some(|x| bf16::from_f32(x).to_f32()),
        _ => None,
    }
}

fn unsupported(what: &str, dtype: DType) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{what} of type {dtype} is not supported"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Constant, tensor_from_codes, tensor_from_f32};
    use crate::proto::{attribute_int, node};

    #[test]
    fn scales_that_are_no_step_are_dequantized_and_refused_for_quantizing() {
        let layout = Layout::new(&[3, 2], &[3], 0, 0).unwrap();
        let scale = [0.0, -0.5, 2.0];
        let y = dequantize_linear(&[1, 2, 3, 4, 5, 6], &layout, &scale, Some(&[0, 1, 0])).unwrap();
        assert_eq!(y, [0.0, 0.0, -1.0, -1.5, 10.0, 12.0]);
        let error = quantize_linear(&[0.0; 6], &layout, &scale, None, DType::I8).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Input);
    }

    #[test]
    fn a_partial_last_block_has_its_own_scale() {
        let layout = Layout::new(&[2, 5], &[2, 3], 1, 2).unwrap();
        let scale = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0];
        let zero_point = [0, 0, 1, 0, 0, 2];
        let y = dequantize_linear(&[1; 10], &layout, &scale, Some(&zero_point)).unwrap();
        assert_eq!(y, [1.0, 1.0, 2.0, 2.0, 0.0, 8.0, 8.0, 16.0, 16.0, -32.0]);
        let codes = quantize_linear(&y, &layout, &scale, Some(&zero_point), DType::I4).unwrap();
        assert_eq!(codes, [1; 10]);
    }

    #[test]
    fn shapes_that_contradict_each_other_are_refused() {
        for (shape, scale_shape, axis, block_size) in [
            (&[2, 3][..], &[3][..], 0, 0),
            (&[2, 3], &[2], 2, 0),
            (&[2, 3], &[2], -3, 0),
            (&[2, 3], &[2, 2], 1, 0),
            (&[2, 3], &[2, 3], 1, 2),
            (&[2, 3], &[2], 1, -1),
        ] {
            let error = Layout::new(shape, scale_shape, axis, block_size).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidGraph, "{shape:?} {scale_shape:?}");
        }
    }

    /// 1027 / 2 is 513.5; `bfloat16` has 8 bits, and 1024 for 1027.
    #[test]
    fn the_division_has_the_precision_that_is_asked_for() {
        let x = tensor_from_f32("x", &[], &[1027.0]);
        let scale = tensor_from_f32("s", &[], &[2.0]);
        let code = |precision: Option<DType>| {
            let mut quantize = node("QuantizeLinear", "q", &["x", "s"], &["y"]);
            quantize.attribute.push(attribute_int("output_dtype", DType::I16.to_onnx().into()));
            if let Some(dtype) = precision {
                quantize.attribute.push(attribute_int("precision", dtype.to_onnx().into()));
            }
            let y = evaluate(&quantize, &[Some(&x), Some(&scale)], None).unwrap();
            Constant::of(&y).to_i64().unwrap()[0]
        };
        assert_eq!(code(None), 514); // halves to even
        assert_eq!(code(Some(DType::F16)), 514);
        assert_eq!(code(Some(DType::BF16)), 512);
    }

    #[test]
    fn contradicting_operands_name_the_node() {
        let x = tensor_from_f32("x", &[], &[1.0]);
        let zero = tensor_from_codes("z", DType::I8, &[], &[0i32]).unwrap();
        let mut quantize = node("QuantizeLinear", "q", &["x", "s", "z"], &["y"]);
        quantize.attribute.push(attribute_int("output_dtype", DType::U8.to_onnx().into()));
        let error = evaluate(&quantize, &[Some(&x), Some(&x), Some(&zero)], None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "in operator `QuantizeLinear` (node `q`): `output_dtype` is uint8, but the zero point is int8"
        );
    }
}
