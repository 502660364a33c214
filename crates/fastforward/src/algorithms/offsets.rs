//! Offsets of weights, without data.

use ff_kernels::{HqqOptions, Tiling, hqq};

use super::layer::of_slot;
use super::network::{Network, values};
use super::report::AlgorithmChange;
use crate::quantization::affine::AffineParameters;
use crate::quantization::{ParameterQuantizer, QuantizerSlot};
use crate::tensor::{Error, Result};

/// Why [`refine`] cannot work on a weight with this slot.
pub(super) fn problem(slot: &QuantizerSlot) -> Option<String> {
    match of_slot(slot) {
        Ok((config, _)) if config.range.symmetric => {
            Some("its quantizer is symmetric, and hqq moves offsets; make it asymmetric".to_owned())
        }
        Ok(_) => None,
        Err(error) => Some(error.to_string()),
    }
}

/// Refines the offsets of a weight's quantizer by half-quadratic quantization: see [`hqq`].
pub(super) fn refine(
    network: &mut Network<'_>,
    weight: &ParameterQuantizer,
    options: &HqqOptions,
) -> Result<AlgorithmChange> {
    let name = &weight.slot_name;
    let at = |error: crate::Error| Error::from(error.at(format_args!("`{name}`")));
    let (config, before) = of_slot(&weight.slot).map_err(at)?;
    let grid = before.grid().map_err(at)?;
    let tile = config.granularity.tile_shape(weight.parameter.dims()).map_err(at)?;
    let data = values(&weight.parameter.tensor())?;
    let found = Tiling::new(weight.parameter.dims(), &tile)
        .and_then(|tiling| hqq(&data, &tiling, before.affine(), grid, options))
        .map_err(|error| Error::new(crate::ErrorKind::InvalidData, format!("`{name}`: {error}")))?;
    let change = AlgorithmChange {
        name: name.clone(),
        before: found.loss_before(),
        after: Some(found.loss_after()),
        rows_kept: None,
    };
    let parameters = AffineParameters { offset: Some(found.offset), ..before };
    network.set_quantizer(&weight.slot, config, parameters)?;
    Ok(change)
}
