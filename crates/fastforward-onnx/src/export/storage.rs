//! The integer types in which codes are stored.

use fastforward_core::quantization::affine::AffineParameters;
use serde::{Deserialize, Serialize};

use super::ExportOptions;
use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};

/// Whether codes are stored with a sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signedness {
    /// `-2^(b-1)` to `2^(b-1) - 1`, as the quantizers count.
    Signed,
    /// `0` to `2^b - 1`.
    Unsigned,
}

/// How the codes of one quantizer are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Storage {
    pub(super) dtype: DType,
    /// What is added to a code.
    pub(super) shift: i64,
}

impl Storage {
    /// `int32`, without a zero point.
    pub(super) fn bias() -> Self {
        Self { dtype: DType::I32, shift: 0 }
    }

    /// The narrowest type that holds codes of `num_bits` bits and that the target knows.
    pub(super) fn of_weight(num_bits: u32, options: &ExportOptions, place: &str) -> Result<Self> {
        let types = [(2, 25), (4, 21), (8, 10), (16, 21)];
        let fitting =
            types.into_iter().find(|&(bits, opset)| num_bits <= bits && opset <= options.max_opset);
        let Some((bits, _)) = fitting else {
            return Err(Error::new(
                ErrorKind::Quantizer,
                format!(
                    "`{place}`: weights of {num_bits} bits have no type in operator set {}; ONNX has \
                     types of 2 bits (from set 25), 4 (21), 8 (10) and 16 (21)",
                    options.max_opset
                ),
            ));
        };
        Ok(Self::new(bits, options.weights))
    }

    /// The type of exactly `num_bits` bits: in a wider one an activation would saturate later.
    pub(super) fn of_activation(
        num_bits: u32,
        options: &ExportOptions,
        place: &str,
    ) -> Result<Self> {
        if ![2, 4, 8, 16].contains(&num_bits) {
            return Err(Error::new(
                ErrorKind::Quantizer,
                format!(
                    "`{place}`: activations of {num_bits} bits cannot be written; ONNX has types of 2, 4, 8 \
                     and 16 bits"
                ),
            ));
        }
        Ok(Self::new(num_bits, options.activations))
    }

    fn new(bits: u32, signedness: Signedness) -> Self {
        let (dtype, shift) = match (bits, signedness) {
            (2, Signedness::Signed) => (DType::I2, 0),
            (4, Signedness::Signed) => (DType::I4, 0),
            (8, Signedness::Signed) => (DType::I8, 0),
            (_, Signedness::Signed) => (DType::I16, 0),
            (2, Signedness::Unsigned) => (DType::U2, 1 << 1),
            (4, Signedness::Unsigned) => (DType::U4, 1 << 3),
            (8, Signedness::Unsigned) => (DType::U8, 1 << 7),
            (_, Signedness::Unsigned) => (DType::U16, 1 << 15),
        };
        Self { dtype, shift }
    }

    /// `-round(offset)` of a tile, in the stored codes.
    pub(super) fn zero_point(&self, parameters: &AffineParameters, tile: usize) -> i64 {
        self.shift.saturating_sub(parameters.rounded_offset(tile) as i64)
    }

    /// Fails unless the type holds the zero points of all tiles.
    pub(super) fn check_zero_points(
        &self,
        parameters: &AffineParameters,
        place: &str,
    ) -> Result<()> {
        let (low, high) = self.dtype.int_range().unwrap_or((0, 0));
        let mut tiles = 0..parameters.scale.len();
        let outside =
            tiles.find(|&tile| !(low..=high).contains(&self.zero_point(parameters, tile)));
        let Some(tile) = outside else { return Ok(()) };
        Err(Error::new(
            ErrorKind::Quantizer,
            format!(
                "`{place}`: offset {} needs the zero point {}, outside {} ({low} to {high}), because its range does not \
                 contain zero; set `zero_in_range = true`",
                parameters.rounded_offset(tile),
                self.zero_point(parameters, tile),
                self.dtype
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_take_the_narrowest_type_that_the_target_has() {
        let mut options = ExportOptions::default();
        let dtype = |bits, options: &ExportOptions| {
            Storage::of_weight(bits, options, "w").map(|storage| storage.dtype)
        };
        for (bits, expected) in [
            (1, DType::I2),
            (2, DType::I2),
            (3, DType::I4),
            (4, DType::I4),
            (5, DType::I8),
            (8, DType::I8),
            (9, DType::I16),
            (16, DType::I16),
        ] {
            assert_eq!(dtype(bits, &options).unwrap(), expected);
        }
        assert!(dtype(17, &options).is_err());
        options.max_opset = 13;
        assert_eq!(dtype(2, &options).unwrap(), DType::I8);
        assert!(dtype(9, &options).is_err());
    }

    #[test]
    fn a_zero_point_that_does_not_fit_is_an_error_with_the_fix() {
        let storage = Storage::new(8, Signedness::Unsigned);
        let parameters = |offset: &[f32]| AffineParameters {
            num_bits: 8,
            narrow_range: false,
            scale: vec![1.0; offset.len()],
            offset: Some(offset.to_vec()),
        };
        let fit = parameters(&[128.0, -127.0, 3.0]);
        storage.check_zero_points(&fit, "x").unwrap();
        assert_eq!([0, 1, 2].map(|tile| storage.zero_point(&fit, tile)), [0, 255, 125]);
        let error = storage
            .check_zero_points(&parameters(&[0.0, 383.0]), "conv.output_quantizer")
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "`conv.output_quantizer`: offset 383 needs the zero point -255, outside uint8 (0 to 255), because its \
             range does not contain zero; set `zero_in_range = true`"
        );
    }
}
