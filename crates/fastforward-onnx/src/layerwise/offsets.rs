//! Offsets of weights, without data.

use std::sync::Arc;

use fastforward_core::quantization::LinearQuantizer;
use fastforward_core::quantization::affine::{AffineParameters, SavedQuantizer};
use ff_kernels::{HqqOptions, Tiling, hqq_offsets};

use crate::error::{Error, ErrorKind, Result};
use crate::graph::Model;
use crate::placement::ConstantFinder;
use crate::tree::Site;

/// What refining the offsets of a weight did.
#[derive(Clone, Debug, PartialEq)]
pub struct OffsetOutcome {
    /// The slot.
    pub slot: String,
    /// `Σ |(w - ŵ)/s|^p` over the weight, before.
    pub loss_before: f64,
    /// The same, after.
    pub loss: f64,
}

/// Refines the offsets of calibrated quantizers of weights by half-quadratic quantization: see [`hqq`](ff_kernels::hqq). Works
/// on every constant, in a graph or without, one after the other: the largest one's float copy and 4 MiB for each thread is
/// what it takes.
///
/// # Errors
/// `Quantizer` for a quantizer that has no offsets, or no range yet; those of reading constants.
pub fn refine_offsets<'s>(
    model: &Model,
    sites: impl IntoIterator<Item = &'s Site>,
    options: &HqqOptions,
) -> Result<Vec<OffsetOutcome>> {
    let mut finder = ConstantFinder::new(model);
    let mut outcomes = Vec::new();
    let mut weight = Vec::new();
    for site in sites {
        let wrong =
            |reason: String| Error::new(ErrorKind::Quantizer, format!("`{}`: {reason}", site.name));
        let Some(SavedQuantizer::Linear(config, Some(before))) = site.slot.quantizer().to_saved()
        else {
            return Err(wrong("its quantizer has no range; calibrate first".to_owned()));
        };
        if config.range.symmetric {
            return Err(wrong(
                "hqq moves offsets, which a symmetric quantizer has none of".to_owned(),
            ));
        }
        let grid = before.grid().map_err(|error| wrong(error.to_string()))?;
        let (_, constant) = finder.find(site)?;
        let shape = constant.info()?.shape;
        let tile =
            config.granularity.tile_shape(&shape).map_err(|error| wrong(error.to_string()))?;
        let len = shape.iter().product();
        if weight.capacity() < len {
            // Not both at a time: the old buffer, and a larger one.
            weight = Vec::new();
        }
        weight.resize(len, 0.0);
        constant.floats()?.read(0, &mut weight)?;
        let found = Tiling::new(&shape, &tile)
            .and_then(|tiling| hqq_offsets(&weight, &tiling, before.affine(), grid, options));
        let found = found.map_err(|error| wrong(error.to_string()))?;
        outcomes.push(OffsetOutcome {
            slot: site.name.clone(),
            loss_before: found.before.iter().sum(),
            loss: found.after.iter().sum(),
        });
        let quantizer = LinearQuantizer::new(config).map_err(|error| wrong(error.to_string()))?;
        quantizer
            .set_parameters(AffineParameters { offset: Some(found.offset), ..before })
            .map_err(|error| wrong(error.to_string()))?;
        site.slot.replace(Arc::new(quantizer));
    }
    Ok(outcomes)
}
