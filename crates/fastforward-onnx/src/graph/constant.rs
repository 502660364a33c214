//! Constants: where they stand, what they hold.

use std::borrow::Cow;
use std::path::Path;

use bytes::Bytes;
use fastforward_core::files::ReadAt;
use half::{bf16, f16};

use super::TensorInfo;
use super::check::checked_size;
use super::external::{self, is_external};
use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::minifloat;
use crate::proto::{
    AttributeProto, GraphProto, NodeProto, TensorProto, attribute_proto::AttributeType,
};
use crate::tensor::{Tensor, TensorData};

/// A tensor whose value the file states.
#[derive(Clone, Debug)]
pub struct Constant<'m> {
    name: &'m str,
    tensor: Cow<'m, TensorProto>,
    origin: ConstantOrigin,
    folder: Option<&'m Path>,
}

/// Where a constant stands in its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConstantOrigin {
    /// Position among the initializers.
    Initializer(usize),
    /// Position of the `Constant` node.
    Node(usize),
    /// In no graph.
    None,
}

impl<'m> Constant<'m> {
    /// A tensor message that stands in no graph; it has no external data.
    pub fn of(tensor: &'m TensorProto) -> Self {
        Self::at(tensor, None)
    }

    /// A tensor message whose external data lies in `folder`.
    pub(crate) fn at(tensor: &'m TensorProto, folder: Option<&'m Path>) -> Self {
        let tensor_name = tensor.name();
        let (tensor, origin) = (Cow::Borrowed(tensor), ConstantOrigin::None);
        Self { name: tensor_name, tensor, origin, folder }
    }

    /// The value's name.
    pub fn name(&self) -> &'m str {
        self.name
    }

    /// Where it stands.
    pub fn origin(&self) -> ConstantOrigin {
        self.origin
    }

    /// The message that holds it.
    pub fn proto(&self) -> &TensorProto {
        &self.tensor
    }

    /// Whether the data lies in another file.
    pub fn is_external(&self) -> bool {
        is_external(&self.tensor)
    }

    /// Element type, shape and size.
    ///
    /// # Errors
    /// `Unsupported` or `InvalidGraph` for a message that was changed since it
    /// was checked.
    pub fn info(&self) -> Result<TensorInfo> {
        let (dtype, _, size_bytes) = checked_size(&self.tensor)?;
        let shape = self.tensor.dims.iter().map(|&dim| dim as usize).collect();
        Ok(TensorInfo { dtype, shape, size_bytes })
    }

    /// The packed little-endian bytes, wherever and however they are stored.
    ///
    /// # Errors
    /// `ExternalData` when a data file cannot be read, `Unsupported` for strings.
    pub fn bytes(&self) -> Result<Bytes> {
        packed_bytes(&self.tensor, self.folder).map_err(|error| self.in_place(error))
    }

    /// The elements as 32-bit floats: floats of any width, integers, `bool`.
    ///
    /// # Errors
    /// As [`Constant::bytes`], and `Unsupported` for complex numbers.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        to_f32(&self.tensor, self.folder).map_err(|error| self.in_place(error))
    }

    /// The elements as 64-bit integers.
    ///
    /// # Errors
    /// As [`Constant::bytes`], and `Unsupported` for what is no integer or `bool`,
    /// or a `uint64` beyond the range.
    pub fn to_i64(&self) -> Result<Vec<i64>> {
        to_i64(&self.tensor, self.folder).map_err(|error| self.in_place(error))
    }

    /// The elements in the narrowest type of [`TensorData`] that holds them.
    ///
    /// # Errors
    /// As [`Constant::to_f32`] and [`Constant::to_i64`].
    pub fn to_tensor(&self) -> Result<Tensor> {
        let info = self.info()?;
        // The range of each type fits the one it is cast to.
        let data = match info.dtype {
            DType::F64 => {
                let bytes = self.bytes()?;
                TensorData::F64(chunks(&bytes).map(f64::from_le_bytes).collect())
            }
            dtype if dtype.is_float() => TensorData::F32(self.to_f32()?),
            DType::Bool => TensorData::Bool(self.to_i64()?.into_iter().map(|x| x != 0).collect()),
            DType::I2 | DType::I4 | DType::I8 => {
                TensorData::I8(self.to_i64()?.into_iter().map(|x| x as i8).collect())
            }
            DType::U2 | DType::U4 | DType::U8 => {
                TensorData::U8(self.to_i64()?.into_iter().map(|x| x as u8).collect())
            }
            DType::I16 => TensorData::I16(self.to_i64()?.into_iter().map(|x| x as i16).collect()),
            DType::U16 => TensorData::U16(self.to_i64()?.into_iter().map(|x| x as u16).collect()),
            DType::I32 => TensorData::I32(self.to_i64()?.into_iter().map(|x| x as i32).collect()),
            _ => TensorData::I64(self.to_i64()?),
        };
        Tensor::new(info.shape, data)
    }

    pub(super) fn folder(&self) -> Option<&Path> {
        self.folder
    }

    pub(super) fn in_place(&self, error: Error) -> Error {
        error.within(format_args!("constant `{}`", self.name))
    }
}

/// A tensor message holding 32-bit floats.
pub fn tensor_from_f32(name: &str, shape: &[usize], values: &[f32]) -> TensorProto {
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    raw_tensor(name, DType::F32, shape, raw.into())
}

/// A tensor message holding 64-bit integers.
pub fn tensor_from_i64(name: &str, shape: &[usize], values: &[i64]) -> TensorProto {
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    raw_tensor(name, DType::I64, shape, raw.into())
}

/// A tensor message holding integer codes of the type `dtype`, packed as the
/// format wants it: two 4-bit or four 2-bit codes in a byte, the first in the
/// low bits.
///
/// # Errors
/// `Input` when `dtype` is no integer type, when a code does not fit it, or
/// when the codes do not fill `shape`.
///
/// ```
/// use fastforward_onnx::{dtype::DType, graph::tensor_from_codes};
/// let tensor = tensor_from_codes("w", DType::I4, &[3], &[-8, 7, 1])?;
/// assert_eq!(tensor.raw_data().as_ref(), [0x78, 0x01]);
/// # Ok::<(), fastforward_onnx::Error>(())
/// ```
pub fn tensor_from_codes<C: Copy + Into<i64>>(
    name: &str,
    dtype: DType,
    shape: &[usize],
    codes: &[C],
) -> Result<TensorProto> {
    let wrong = |problem: String| Error::new(ErrorKind::Input, problem);
    let (low, high) = dtype
        .int_range()
        .ok_or_else(|| wrong(format!("codes of `{name}` cannot be stored as {dtype}")))?;
    let codes: Vec<i64> = codes.iter().map(|&code| code.into()).collect();
    if let Some(code) = codes.iter().find(|&&code| code < low || code > high) {
        return Err(wrong(format!(
            "code {code} of `{name}` does not fit {dtype}, {low} to {high}"
        )));
    }
    if crate::tensor::n_elements(shape) != Some(codes.len()) {
        return Err(wrong(format!(
            "{} codes do not fill `{name}` of shape {shape:?}",
            codes.len()
        )));
    }
    Ok(raw_tensor(name, dtype, shape, pack_codes(dtype, &codes).into()))
}

/// A tensor message around packed bytes.
pub(crate) fn raw_tensor(name: &str, dtype: DType, shape: &[usize], raw: Bytes) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(dtype.to_onnx()),
        dims: shape.iter().map(|&size| size as i64).collect(),
        raw_data: Some(raw),
        ..TensorProto::default()
    }
}

/// A tensor message of real numbers rounded to `dtype`; `None` where that is
/// none of `float32`, `float16`, `bfloat16` and `float64`.
///
/// ```
/// use fastforward_onnx::{dtype::DType, graph::tensor_from_floats};
/// let tensor = tensor_from_floats("w", DType::F16, &[2], &[1.0, -2.0]).unwrap();
/// assert_eq!(tensor.raw_data().as_ref(), [0x00, 0x3c, 0x00, 0xc0]);
/// ```
pub fn tensor_from_floats(
    name: &str,
    dtype: DType,
    shape: &[usize],
    values: &[f32],
) -> Option<TensorProto> {
    let raw: Vec<u8> = match dtype {
        DType::F32 => return Some(tensor_from_f32(name, shape, values)),
        DType::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        DType::F64 => values.iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect(),
        _ => return None,
    };
    Some(raw_tensor(name, dtype, shape, raw.into()))
}

/// Codes of an integer type (or bit patterns of a narrow float), packed.
pub(crate) fn pack_codes(dtype: DType, codes: &[i64]) -> Vec<u8> {
    match dtype.bits() {
        bits @ (2 | 4 | 6) => {
            // One stream of bits, the first code in the lowest.
            let mut packed = vec![0u8; (codes.len() * bits as usize).div_ceil(8)];
            for (position, &code) in codes.iter().enumerate() {
                let bit = position * bits as usize;
                let [low, high] = ((code as u16 & ((1 << bits) - 1)) << (bit % 8)).to_le_bytes();
                packed[bit / 8] |= low;
                if high != 0 {
                    packed[bit / 8 + 1] |= high;
                }
            }
            packed
        }
        bits => {
            let n_bytes = bits as usize / 8;
            codes.iter().flat_map(|code| code.to_le_bytes().into_iter().take(n_bytes)).collect()
        }
    }
}

pub(crate) fn constants_of<'m>(
    graph: &'m GraphProto,
    folder: Option<&'m Path>,
) -> impl Iterator<Item = Constant<'m>> {
    let initializers =
        graph.initializer.iter().enumerate().map(move |(position, tensor)| Constant {
            name: tensor.name(),
            tensor: Cow::Borrowed(tensor),
            origin: ConstantOrigin::Initializer(position),
            folder,
        });
    let nodes = graph.node.iter().enumerate().filter_map(move |(position, node)| {
        Some(Constant {
            name: node.output.first()?,
            tensor: constant_node_value(node)?,
            origin: ConstantOrigin::Node(position),
            folder,
        })
    });
    initializers.chain(nodes)
}

/// The tensor of a `Constant` node; `None` for other nodes and for a sparse
/// value or strings, which are no dense tensor of numbers.
pub(crate) fn constant_node_value(node: &NodeProto) -> Option<Cow<'_, TensorProto>> {
    if !node.is_standard("Constant") {
        return None;
    }
    let name = node.output.first()?;
    let attribute = node.attribute.first()?;
    match attribute.name() {
        "value" => attribute.t.as_ref().map(Cow::Borrowed),
        "value_float" => Some(Cow::Owned(tensor_from_f32(name, &[], &[attribute.f()]))),
        "value_floats" => {
            let floats = &attribute.floats;
            Some(Cow::Owned(tensor_from_f32(name, &[floats.len()], floats)))
        }
        "value_int" => Some(Cow::Owned(tensor_from_i64(name, &[], &[attribute.i()]))),
        "value_ints" => {
            let ints = &attribute.ints;
            Some(Cow::Owned(tensor_from_i64(name, &[ints.len()], ints)))
        }
        _ => None,
    }
}

pub(super) fn set_constant(graph: &mut GraphProto, mut tensor: TensorProto) {
    let name = tensor.name().to_owned();
    if let Some(old) = graph.initializer.iter_mut().find(|old| old.name() == name) {
        *old = tensor;
        return;
    }
    let is_its_node =
        |node: &&mut NodeProto| node.is_standard("Constant") && node.output.first() == Some(&name);
    match graph.node.iter_mut().find(is_its_node) {
        Some(node) => {
            // The tensor inside a node keeps the name it had there.
            let old = node.attribute.first().and_then(|attribute| attribute.t.as_ref());
            tensor.name = old.map_or(Some(name), |old| old.name.clone());
            node.attribute = vec![AttributeProto {
                name: Some("value".to_owned()),
                r#type: Some(AttributeType::Tensor as i32),
                t: Some(tensor),
                ..AttributeProto::default()
            }];
        }
        None => graph.initializer.push(tensor),
    }
}

/// Checks that the data of `tensor` is there and is as long as type and shape say.
pub(super) fn check_tensor(tensor: &TensorProto, folder: Option<&Path>) -> Result<()> {
    let (dtype, n_elements, size_bytes) = checked_size(tensor)?;
    if is_external(tensor) {
        return external::locate(tensor, size_bytes, folder).map(drop);
    }
    let (found, expected, unit) = match (&tensor.raw_data, dtype) {
        (_, DType::String) => (tensor.string_data.len(), n_elements, "strings"),
        (Some(raw), _) => (raw.len(), size_bytes, "bytes"),
        (None, DType::F32) => (tensor.float_data.len(), n_elements, "elements"),
        (None, DType::Complex64) => (tensor.float_data.len(), 2 * n_elements, "elements"),
        (None, DType::F64) => (tensor.double_data.len(), n_elements, "elements"),
        (None, DType::Complex128) => (tensor.double_data.len(), 2 * n_elements, "elements"),
        (None, DType::I64) => (tensor.int64_data.len(), n_elements, "elements"),
        (None, DType::U32 | DType::U64) => (tensor.uint64_data.len(), n_elements, "elements"),
        // 2- and 4-bit types stand packed, one byte in each entry.
        (None, dtype) if dtype.bits() < 6 => (tensor.int32_data.len(), size_bytes, "packed bytes"),
        (None, _) => (tensor.int32_data.len(), n_elements, "elements"),
    };
    if found != expected {
        return Err(Error::new(
            ErrorKind::InvalidGraph,
            format!("has {found} {unit}, but {dtype} of shape {:?} needs {expected}", tensor.dims),
        ));
    }
    Ok(())
}

/// The packed little-endian bytes of `tensor`.
pub(crate) fn packed_bytes(tensor: &TensorProto, folder: Option<&Path>) -> Result<Bytes> {
    check_tensor(tensor, folder)?;
    let (dtype, _, size_bytes) = checked_size(tensor)?;
    if dtype == DType::String {
        return Err(Error::new(ErrorKind::Unsupported, "strings have no numeric value"));
    }
    if is_external(tensor) {
        let stored = super::stored::stored(tensor, folder)?;
        let mut bytes = vec![0; size_bytes];
        stored.read_at(0, &mut bytes).map_err(|error| {
            Error::new(ErrorKind::ExternalData, error.to_string()).caused_by(error)
        })?;
        return Ok(bytes.into());
    }
    if let Some(raw) = &tensor.raw_data {
        return Ok(raw.clone());
    }
    let n_bytes = (dtype.bits() as usize).div_ceil(8);
    let packed: Vec<u8> = match dtype {
        DType::F32 | DType::Complex64 => {
            tensor.float_data.iter().flat_map(|x| x.to_le_bytes()).collect()
        }
        DType::F64 | DType::Complex128 => {
            tensor.double_data.iter().flat_map(|x| x.to_le_bytes()).collect()
        }
        DType::I64 => tensor.int64_data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::U32 | DType::U64 => tensor
            .uint64_data
            .iter()
            .flat_map(|x| x.to_le_bytes().into_iter().take(n_bytes))
            .collect(),
        DType::F6E2M3 | DType::F6E3M2 => {
            let codes: Vec<i64> = tensor.int32_data.iter().map(|&code| i64::from(code)).collect();
            pack_codes(dtype, &codes)
        }
        _ => tensor
            .int32_data
            .iter()
            .flat_map(|x| x.to_le_bytes().into_iter().take(n_bytes))
            .collect(),
    };
    Ok(packed.into())
}

/// See [`Constant::to_f32`].
pub(crate) fn to_f32(tensor: &TensorProto, folder: Option<&Path>) -> Result<Vec<f32>> {
    let (dtype, n_elements, _) = checked_size(tensor)?;
    if dtype.is_int() || dtype == DType::Bool {
        return Ok(to_i64(tensor, folder)?.into_iter().map(|x| x as f32).collect());
    }
    let bytes = packed_bytes(tensor, folder)?;
    Ok(match dtype {
        DType::F32 => chunks(&bytes).map(f32::from_le_bytes).collect(),
        DType::F64 => chunks(&bytes).map(|b| f64::from_le_bytes(b) as f32).collect(),
        DType::F16 => chunks(&bytes).map(|b| f16::from_le_bytes(b).to_f32()).collect(),
        DType::BF16 => chunks(&bytes).map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
        dtype if dtype.is_float() => {
            let codes = unpack_codes(dtype, &bytes, n_elements);
            codes.into_iter().map(|code| minifloat::decode(dtype, code as u8)).collect()
        }
        _ => {
            return Err(Error::new(ErrorKind::Unsupported, format!("{dtype} has no real value")));
        }
    })
}

/// See [`Constant::to_i64`].
pub(crate) fn to_i64(tensor: &TensorProto, folder: Option<&Path>) -> Result<Vec<i64>> {
    let (dtype, n_elements, _) = checked_size(tensor)?;
    if !dtype.is_int() && dtype != DType::Bool {
        return Err(Error::new(ErrorKind::Unsupported, format!("{dtype} holds no integers")));
    }
    let bytes = packed_bytes(tensor, folder)?;
    let codes = unpack_codes(dtype, &bytes, n_elements);
    if dtype == DType::U64
        && let Some(&large) = codes.iter().find(|&&code| code < 0)
    {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("{} is larger than the largest 64-bit integer with a sign", large as u64),
        ));
    }
    Ok(codes)
}

/// The integers in packed bytes (bit patterns for what is no integer).
pub(crate) fn unpack_codes(dtype: DType, bytes: &[u8], n_elements: usize) -> Vec<i64> {
    let signed = dtype.is_signed_int();
    match dtype.bits() {
        bits @ (2 | 4 | 6) => {
            let code = |position: usize| {
                let bit = position * bits as usize;
                let high = bytes.get(bit / 8 + 1).copied().unwrap_or(0);
                let pair = u16::from_le_bytes([bytes[bit / 8], high]);
                let code = pair >> (bit % 8) & ((1 << bits) - 1);
                let is_negative = signed && code >> (bits - 1) == 1;
                i64::from(code) - if is_negative { 1 << bits } else { 0 }
            };
            (0..n_elements).map(code).collect()
        }
        8 if signed => bytes.iter().map(|&b| i64::from(b as i8)).collect(),
        8 => bytes.iter().map(|&b| i64::from(b)).collect(),
        16 if signed => chunks(bytes).map(|b| i64::from(i16::from_le_bytes(b))).collect(),
        16 => chunks(bytes).map(|b| i64::from(u16::from_le_bytes(b))).collect(),
        32 if signed => chunks(bytes).map(|b| i64::from(i32::from_le_bytes(b))).collect(),
        32 => chunks(bytes).map(|b| i64::from(u32::from_le_bytes(b))).collect(),
        _ => chunks(bytes).map(i64::from_le_bytes).collect(),
    }
}

/// [`unpack_codes`] of integers of at most 32 bits into a slice, from a number of bits in the first byte on.
pub(super) fn unpack_into(dtype: DType, bytes: &[u8], skip_bits: usize, out: &mut [i32]) {
    fn each<const N: usize>(bytes: &[u8], out: &mut [i32], decode: impl Fn([u8; N]) -> i32) {
        for (out, bytes) in out.iter_mut().zip(chunks(bytes)) {
            *out = decode(bytes);
        }
    }
    let signed = dtype.is_signed_int();
    match dtype.bits() {
        bits @ (2 | 4) => {
            let bits = bits as usize;
            // A shift up and one down, which carries the sign where there is one.
            let above = 32 - bits;
            for (at, out) in out.iter_mut().enumerate() {
                let bit = skip_bits + at * bits;
                let code = u32::from(bytes[bit / 8]) >> (bit % 8) << above;
                *out = if signed { code as i32 >> above } else { (code >> above) as i32 };
            }
        }
        8 if signed => each(bytes, out, |[byte]| i32::from(byte as i8)),
        8 => each(bytes, out, |[byte]| i32::from(byte)),
        16 if signed => each(bytes, out, |b| i32::from(i16::from_le_bytes(b))),
        16 => each(bytes, out, |b| i32::from(u16::from_le_bytes(b))),
        _ => each(bytes, out, i32::from_le_bytes),
    }
}

fn chunks<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_codes_are_packed_low_bits_first() {
        for (dtype, codes) in [
            (DType::I4, vec![-8, 7, 0, -1, 3]),
            (DType::U4, vec![15, 0, 7, 8, 9]),
            (DType::I2, vec![-2, 1, 0, -1, 1]),
            (DType::U2, vec![3, 0, 1, 2, 3]),
            (DType::I16, vec![-32768, 32767, 0, -1, 3]),
            (DType::U32, vec![0, 4294967295, 1, 2, 3]),
        ] {
            let tensor = tensor_from_codes("w", dtype, &[5], &codes).unwrap();
            assert_eq!(tensor.raw_data().len(), dtype.size_bytes(5).unwrap());
            assert_eq!(to_i64(&tensor, None).unwrap(), codes, "{dtype}");
        }
        assert!(tensor_from_codes("w", DType::I4, &[1], &[8]).is_err());
        assert!(tensor_from_codes("w", DType::I4, &[2], &[7]).is_err());
        assert!(tensor_from_codes("w", DType::F32, &[1], &[7]).is_err());
    }

    #[test]
    fn codes_are_unpacked_from_any_place() {
        for (dtype, low, high) in [
            (DType::I2, -2, 1),
            (DType::U2, 0, 3),
            (DType::I4, -8, 7),
            (DType::U4, 0, 15),
            (DType::I8, -128, 127),
            (DType::U8, 0, 255),
            (DType::I16, -32768, 32767),
            (DType::U16, 0, 65535),
            (DType::I32, i64::from(i32::MIN), i64::from(i32::MAX)),
        ] {
            let codes: Vec<i64> = (0..23).map(|at| [low, high, 0, 1, low + 1][at % 5]).collect();
            let tensor = tensor_from_codes("w", dtype, &[23], &codes).unwrap();
            let constant = Constant::of(&tensor);
            let stored = constant.stored().unwrap();
            for (first, len) in [(0, 23), (1, 22), (3, 7), (22, 1), (23, 0)] {
                let mut found = vec![0; len];
                constant.read_codes(dtype, &stored, first, &mut Vec::new(), &mut found).unwrap();
                let found: Vec<i64> = found.into_iter().map(i64::from).collect();
                assert_eq!(found, codes[first..first + len], "{dtype} from {first}");
            }
        }
    }

    #[test]
    fn six_bit_codes_are_one_stream_of_bits() {
        let codes = [0b00_0001, 0b11_1111, 0b10_0000, 0b01_0101, 0b00_0011];
        let packed = pack_codes(DType::F6E2M3, &codes);
        assert_eq!(packed, [0b1100_0001, 0b0000_1111, 0b0101_0110, 0b0000_0011]);
        assert_eq!(unpack_codes(DType::F6E2M3, &packed, 5), codes);
    }

    #[test]
    fn typed_fields_hold_the_same_as_raw_bytes() {
        let mut tensor = tensor_from_codes("w", DType::I4, &[3], &[-8, 7, 1]).unwrap();
        let raw = tensor.raw_data.take().unwrap();
        tensor.int32_data = raw.iter().map(|&byte| i32::from(byte)).collect();
        assert_eq!(to_i64(&tensor, None).unwrap(), [-8, 7, 1]);
        let half = TensorProto {
            data_type: Some(DType::F16.to_onnx()),
            dims: vec![2],
            int32_data: vec![0x3c00, 0xc000],
            ..TensorProto::default()
        };
        assert_eq!(to_f32(&half, None).unwrap(), [1.0, -2.0]);
    }
}
