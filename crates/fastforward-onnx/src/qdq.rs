//! `QuantizeLinear` and `DequantizeLinear` as ONNX defines them, for every type
//! and layout.
//!
//! The convention differs from the one of `ff-kernels` (spec §4.2): the zero
//! point is added after rounding, so ties are decided before it,
//! `y = saturate(round_half_even(x / scale) + zero_point)`.

use std::path::Path;

use half::{bf16, f16};

use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::check_describe as describe;
use crate::graph::data;
use crate::minifloat::MiniFloat;
use crate::proto::{NodeProto, TensorProto};
use crate::tensor::n_elements;

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
                len,
                n_scales,
                inner: len.max(1),
                axis_len: 1,
                n_blocks: 1,
                block_len: 1,
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
                len,
                n_scales,
                inner,
                axis_len,
                n_blocks: axis_len,
                block_len: 1,
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
        Ok(Self { len, n_scales, inner, axis_len, n_blocks, block_len, is_blocked: true })
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

    fn check(&self, n_values: usize, scale: &[f32], zero_point: Option<usize>) -> Result<()> {
        let wrong = |what: &str, found: usize, expected: usize| {
            Err(Error::new(ErrorKind::Input, format!("{found} {what}, expected {expected}")))
        };
        if n_values != self.len {
            return wrong("elements", n_values, self.len);
        }
        if scale.len() != self.n_scales {
            return wrong("scales", scale.len(), self.n_scales);
        }
        match zero_point {
            Some(found) if found != self.n_scales => wrong("zero points", found, self.n_scales),
            _ => Ok(()),
        }
    }
}

/// Quantizes to the integers of `dtype`:
/// `y = saturate(round_half_even(x / scale) + zero_point)`.
///
/// NaN becomes the zero point, infinities saturate. `zero_point` is 0 where it
/// is not given.
///
/// # Errors
/// `Input` when lengths do not fit the layout, or `dtype` is no integer type.
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
    zero_point: Option<&[i64]>,
    dtype: DType,
) -> Result<Vec<i64>> {
    quantize_with(x, layout, scale, zero_point, dtype, |x, scale| x / scale)
}

fn quantize_with(
    x: &[f32],
    layout: &Layout,
    scale: &[f32],
    zero_point: Option<&[i64]>,
    dtype: DType,
    divide: impl Fn(f32, f32) -> f32,
) -> Result<Vec<i64>> {
    layout.check(x.len(), scale, zero_point.map(<[i64]>::len))?;
    let (low, high) = dtype.int_range().ok_or_else(|| {
        Error::new(ErrorKind::Input, format!("{dtype} has no integers to quantize to"))
    })?;
    let code = |(position, &x): (usize, &f32)| {
        let tile = layout.scale_of(position);
        let zero_point = zero_point.map_or(0, |zero_points| zero_points[tile]);
        // The cast saturates and takes NaN to 0.
        let steps = divide(x, scale[tile]).round_ties_even() as i64;
        steps.saturating_add(zero_point).clamp(low, high)
    };
    Ok(x.iter().enumerate().map(code).collect())
}

/// Dequantizes integers: `x = (y - zero_point) · scale`.
///
/// # Errors
/// `Input` when lengths do not fit the layout.
pub fn dequantize_linear(
    codes: &[i64],
    layout: &Layout,
    scale: &[f32],
    zero_point: Option<&[i64]>,
) -> Result<Vec<f32>> {
    layout.check(codes.len(), scale, zero_point.map(<[i64]>::len))?;
    let value = |(position, &code): (usize, &i64)| {
        let tile = layout.scale_of(position);
        let zero_point = zero_point.map_or(0, |zero_points| zero_points[tile]);
        code.saturating_sub(zero_point) as f32 * scale[tile]
    };
    Ok(codes.iter().enumerate().map(value).collect())
}

/// What `DynamicQuantizeLinear` computes: codes, scale, zero point.
///
/// The range is widened to hold zero; `scale = (max - min) / 255`,
/// `zero_point = saturate(round(-min / scale))`, codes as [`quantize_linear`]
/// to `uint8`. A tensor without a range (all zero, or empty) has scale 1.
///
/// # Errors
/// None in practice; the layout is per tensor.
pub fn dynamic_quantize_linear(x: &[f32]) -> Result<(Vec<i64>, f32, i64)> {
    let low = x.iter().copied().fold(0.0, f32::min);
    let high = x.iter().copied().fold(0.0, f32::max);
    let scale = match (high - low) / 255.0 {
        0.0 => 1.0,
        scale => scale,
    };
    let zero_point = ((0.0 - low) / scale).round_ties_even().clamp(0.0, 255.0) as i64;
    let layout = Layout::new(&[x.len()], &[], 0, 0)?;
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
    zero_point: Option<(DType, Vec<i64>)>,
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
                    data::to_i64(tensor, folder)?
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

        let codes = if let Some(format) = MiniFloat::of(dtype) {
            self.layout.check(x.len(), &self.scale, zero_point.map(<[i64]>::len))?;
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
            quantize_with(&x, &self.layout, &self.scale, zero_point, dtype, divide)?
        } else {
            return Err(unsupported("output", dtype));
        };
        Ok(data::raw_tensor(name, dtype, &self.shape, data::pack_codes(dtype, &codes).into()))
    }

    fn dequantize(self, node: &NodeProto) -> Result<TensorProto> {
        if let Some((dtype, _)) = &self.zero_point
            && *dtype != self.x_dtype
        {
            return Err(Error::new(
                ErrorKind::InvalidGraph,
                format!("zero point of type {dtype}, expected that of the input, {}", self.x_dtype),
            ));
        }
        let zero_point = self.zero_point.as_ref().map(|(_, values)| values.as_slice());
        let values = if self.x_dtype.is_int() && self.x_dtype.bits() <= 32 {
            let codes = data::to_i64(self.x, self.folder)?;
            dequantize_linear(&codes, &self.layout, &self.scale, zero_point)?
        } else if self.x_dtype.is_minifloat() {
            let values = data::to_f32(self.x, self.folder)?;
            self.layout.check(values.len(), &self.scale, None)?;
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
        data::float_tensor(name, dtype, &self.shape, &values)
            .ok_or_else(|| unsupported("output", dtype))
    }
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
