//! Scale and offset for a range, and the range of a scale and offset.

use crate::affine::{Affine, Bounds};
use crate::error::{KernelError, KernelErrorKind, check_len};
use crate::grid::IntegerGrid;

/// Affine parameters that own their memory; see [`Affine`].
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    /// One scale per tile.
    pub scale: Vec<f32>,
    /// One offset per tile, not rounded; `None` where all are zero by construction.
    pub offset: Option<Vec<f32>>,
}

impl Parameters {
    /// The parameters as kernels take them.
    pub fn affine(&self) -> Affine<'_> {
        Affine { scale: &self.scale, offset: self.offset.as_deref() }
    }
}

/// How [`parameters_for_range`] chooses parameters. The default is what the reference does for a
/// symmetric quantizer (spec §4.4), made safe for degenerate ranges.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RangeOptions {
    /// Zero in the middle of the grid (no offset), against the grid laid over the range exactly.
    pub symmetric: bool,
    /// Whether symmetric parameters may use the whole grid for data that is never negative.
    pub one_sided: OneSided,
    /// Widens asymmetric ranges so that they contain zero, which padding and ReLU need to be exact.
    /// The reference does not, hence off by default.
    pub include_zero: bool,
    /// Rounds each scale up to a power of two. Off by default.
    pub power_of_two: bool,
    /// The smallest scale of asymmetric and one-sided parameters; the reference's, and the default,
    /// is [`f32::EPSILON`]. Positive and finite.
    pub scale_floor: f32,
    /// What happens where the reference's formula gives no usable parameters.
    pub degenerate: Degenerate,
}

/// When symmetric parameters may leave the negative half out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OneSided {
    /// Never: there is no offset.
    Never,
    /// When no tile has a negative minimum: one decision for all tiles, as the reference does.
    Global,
    /// Tile by tile: a channel that is never negative keeps its precision beside one that is.
    PerTile,
}

/// What to do with ranges for which the reference's formula fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Degenerate {
    /// A symmetric scale of zero (constant zero data) becomes the scale floor; a range too wide for
    /// f32 is divided before it is subtracted; a range so far from zero that its offset overflows is
    /// widened to zero. Scales are then always positive and finite and offsets finite.
    Repair,
    /// The formula as it stands, zero and infinite results included.
    Reference,
}

impl Default for RangeOptions {
    fn default() -> Self {
        RangeOptions {
            symmetric: true,
            one_sided: OneSided::Global,
            include_zero: false,
            power_of_two: false,
            scale_floor: f32::EPSILON,
            degenerate: Degenerate::Repair,
        }
    }
}

/// Scale and offset of each tile for its range, in f32 throughout (spec §4.4).
///
/// On the grid `lo..=hi`, for each tile:
///
/// ```text
/// symmetric:             s = max(|min| / -lo, |max| / hi)            no offset
/// symmetric, one-sided:  min := 0, then as asymmetric
/// asymmetric:            s = max((max - min) / (hi - lo), floor)     offset = min / s - lo
/// ```
///
/// Offsets are not rounded. A reversed range (`min > max`) is not an error: like the reference,
/// asymmetric parameters then have the smallest scale. With [`OneSided::PerTile`] two-sided tiles
/// have offset 0 beside one-sided ones. For a narrow grid pass [`IntegerGrid::narrow`].
///
/// # Errors
/// `min` and `max` of different length; bounds that are not finite (all tiles are listed); a grid
/// without a negative or without a positive code for symmetric parameters; a scale floor that is
/// not positive and finite.
///
/// ```
/// use ff_kernels::{IntegerGrid, RangeOptions, parameters_for_range};
/// let grid = IntegerGrid::signed(8)?;
/// let asymmetric = RangeOptions { symmetric: false, ..Default::default() };
/// let p = parameters_for_range(&[1.0], &[2.0], grid, &asymmetric)?;
/// assert_eq!((p.scale[0], p.offset), (1.0 / 255.0, Some(vec![383.0])));
///
/// let zero = parameters_for_range(&[0.0], &[0.0], grid, &RangeOptions::default())?;
/// assert!(zero.scale[0] > 0.0);
/// # Ok::<(), ff_kernels::KernelError>(())
/// ```
pub fn parameters_for_range(
    min: &[f32],
    max: &[f32],
    grid: IntegerGrid,
    options: &RangeOptions,
) -> Result<Parameters, KernelError> {
    check(min, max, grid, options)?;
    let bounds = Bounds::new(grid);
    let never_negative = min.iter().all(|&m| m >= 0.0);
    let mut scales = Vec::with_capacity(min.len());
    // Without tiles, too, asymmetric parameters have offsets; symmetric ones have none, or from the first on that needs it.
    let mut offsets = (!options.symmetric).then(|| Vec::with_capacity(min.len()));
    for (&tile_min, &tile_max) in min.iter().zip(max) {
        let (scale, offset) = tile_parameters(tile_min, tile_max, never_negative, bounds, options);
        if offset.is_some() && offsets.is_none() {
            let mut zeros = Vec::with_capacity(min.len());
            zeros.resize(scales.len(), 0.0);
            offsets = Some(zeros);
        }
        if let Some(offsets) = &mut offsets {
            offsets.push(offset.unwrap_or(0.0));
        }
        scales.push(scale);
    }
    Ok(Parameters { scale: scales, offset: offsets })
}

/// The range that parameters cover, `((lo + o)·s, (hi + o)·s)` per tile, with the offset as it is,
/// not rounded (spec §3.7). The inverse of [`parameters_for_range`] for asymmetric parameters.
///
/// # Errors
/// Offsets of another number than scales.
pub fn quantization_range(
    affine: Affine<'_>,
    grid: IntegerGrid,
) -> Result<(Vec<f32>, Vec<f32>), KernelError> {
    if let Some(offset) = affine.offset {
        check_len("offset", affine.scale.len(), offset.len())?;
    }
    let bounds = Bounds::new(grid);
    let edge = |bound: f32| {
        let offset = |i| affine.offset.map_or(0.0, |o: &[f32]| o[i]);
        affine.scale.iter().enumerate().map(|(i, s)| (bound + offset(i)) * s).collect()
    };
    Ok((edge(bounds.lo), edge(bounds.hi)))
}

/// Scale and offset of one tile. `never_negative`: no tile of the tensor has a negative minimum.
#[inline(always)]
pub(super) fn tile_parameters(
    min: f32,
    max: f32,
    never_negative: bool,
    grid: Bounds,
    options: &RangeOptions,
) -> (f32, Option<f32>) {
    let one_sided = options.symmetric
        && match options.one_sided {
            OneSided::Never => false,
            OneSided::Global => never_negative,
            OneSided::PerTile => min >= 0.0,
        };
    let (scale, offset) = if one_sided {
        laid_over(0.0, max, grid, options)
    } else if options.symmetric {
        return (symmetric_scale(min, max, grid, options), None);
    } else if options.include_zero {
        laid_over(min.min(0.0), max.max(0.0), grid, options)
    } else {
        laid_over(min, max, grid, options)
    };
    (scale, Some(offset))
}

pub(super) fn check(
    min: &[f32],
    max: &[f32],
    grid: IntegerGrid,
    options: &RangeOptions,
) -> Result<(), KernelError> {
    check_len("maximum", min.len(), max.len())?;
    if options.symmetric && !(grid.lo() < 0 && grid.hi() > 0) {
        return Err(KernelErrorKind::Grid {
            lo: grid.lo().into(),
            hi: grid.hi().into(),
            reason: "symmetric parameters need codes on both sides of zero",
        }
        .into());
    }
    if !(options.scale_floor > 0.0 && options.scale_floor.is_finite()) {
        return Err(KernelErrorKind::Option {
            what: "scale floor",
            must_be: "positive and finite",
            found: options.scale_floor.into(),
        }
        .into());
    }
    let bad = |i: &usize| !(min[*i].is_finite() && max[*i].is_finite());
    let tiles: Vec<_> = (0..min.len()).filter(bad).map(|i| (i, min[i], max[i])).collect();
    if tiles.is_empty() { Ok(()) } else { Err(KernelErrorKind::NonFiniteRange { tiles }.into()) }
}

/// The scale at which zero is code 0 and both ends are on the grid.
fn symmetric_scale(min: f32, max: f32, grid: Bounds, options: &RangeOptions) -> f32 {
    let scale = (min.abs() / -grid.lo).max(max.abs() / grid.hi);
    if scale == 0.0 && options.degenerate == Degenerate::Repair {
        return finish(options.scale_floor, options);
    }
    finish(scale, options)
}

/// Scale and offset at which `min` is the lowest code and `max` the highest.
fn laid_over(min: f32, max: f32, grid: Bounds, options: &RangeOptions) -> (f32, f32) {
    let repair = options.degenerate == Degenerate::Repair;
    let steps = grid.hi - grid.lo;
    let mut step = (max - min) / steps;
    if repair && step.is_infinite() {
        step = max / steps - min / steps;
    }
    let scale = finish(step.max(options.scale_floor), options);
    let offset = min / scale - grid.lo;
    if repair && offset.is_infinite() && (min > 0.0 || max < 0.0) {
        return laid_over(min.min(0.0), max.max(0.0), grid, options);
    }
    (scale, offset)
}

/// Applies what holds for every scale.
fn finish(scale: f32, options: &RangeOptions) -> f32 {
    if options.power_of_two { power_of_two_above(scale) } else { scale }
}

/// The smallest power of two that is not below `scale`, or the largest one there is.
fn power_of_two_above(scale: f32) -> f32 {
    const LARGEST: f32 = f32::from_bits(0x7f00_0000); // 2^127
    if !scale.is_finite() || scale >= LARGEST {
        return if scale.is_finite() { LARGEST } else { scale };
    }
    if scale < f32::MIN_POSITIVE {
        // Subnormal: no exponent bits to round up, so round the bit pattern itself.
        return f32::from_bits(scale.to_bits().next_power_of_two() & !u32::from(scale == 0.0));
    }
    let bits = scale.to_bits();
    f32::from_bits((bits + 0x007f_ffff) & 0xff80_0000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [(bool, OneSided); 6] = [
        (true, OneSided::Never),
        (true, OneSided::Global),
        (true, OneSided::PerTile),
        (false, OneSided::Never),
        (false, OneSided::Global),
        (false, OneSided::PerTile),
    ];

    #[track_caller]
    fn one(min: f32, max: f32, options: &RangeOptions) -> (f32, Option<f32>) {
        let grid = IntegerGrid::signed(8).unwrap();
        let p = parameters_for_range(&[min], &[max], grid, options).unwrap();
        (p.scale[0], p.offset.map(|o| o[0]))
    }

    #[test]
    fn no_finite_range_gives_unusable_parameters() {
        let ends = [
            0.0,
            -0.0,
            1e-45,
            -1e-45,
            1e-38,
            0.1,
            -0.1,
            1.0,
            5.0,
            -5.0,
            1e30,
            -1e30,
            3e38,
            -3e38,
            f32::MAX,
            f32::MIN,
        ];
        for (symmetric, one_sided) in ALL {
            for (include_zero, power_of_two) in
                [(false, false), (true, false), (false, true), (true, true)]
            {
                let options = RangeOptions {
                    symmetric,
                    one_sided,
                    include_zero,
                    power_of_two,
                    ..Default::default()
                };
                for bits in [2, 3, 4, 8, 16, 24] {
                    let grid = IntegerGrid::signed(bits).unwrap();
                    for min in ends {
                        for max in ends {
                            if min > max {
                                continue;
                            }
                            let p = parameters_for_range(&[min], &[max], grid, &options).unwrap();
                            let s = p.scale[0];
                            assert!(
                                s > 0.0 && s.is_finite(),
                                "{min} {max} {options:?} {bits}: {s}"
                            );
                            let o = p.offset.map_or(0.0, |o| o[0]);
                            assert!(o.is_finite(), "{min} {max} {options:?} {bits}: offset {o}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn constant_zero_symmetric_follows_the_choice() {
        let options = RangeOptions { one_sided: OneSided::Never, ..Default::default() };
        assert_eq!(one(0.0, 0.0, &options), (f32::EPSILON, None));
        let reference = RangeOptions { degenerate: Degenerate::Reference, ..options };
        assert_eq!(one(0.0, 0.0, &reference), (0.0, None));
    }

    #[test]
    fn range_wider_than_f32_follows_the_choice() {
        let options = RangeOptions { symmetric: false, ..Default::default() };
        assert_eq!(one(-3e38, 3e38, &options).0, 3e38 / 255.0 * 2.0);
        let reference = RangeOptions { degenerate: Degenerate::Reference, ..options };
        assert_eq!(one(-3e38, 3e38, &reference), (f32::INFINITY, Some(128.0)));
    }

    #[test]
    fn one_sidedness_is_global_or_per_tile() {
        let grid = IntegerGrid::signed(8).unwrap();
        let run = |one_sided| {
            let options = RangeOptions { one_sided, ..Default::default() };
            parameters_for_range(&[-1.0, 0.0], &[1.0, 1.0], grid, &options).unwrap()
        };
        let both = Parameters { scale: vec![1.0 / 127.0; 2], offset: None };
        assert_eq!(run(OneSided::Global), both);
        assert_eq!(run(OneSided::Never), both);
        let mixed =
            Parameters { scale: vec![1.0 / 127.0, 1.0 / 255.0], offset: Some(vec![0.0, 128.0]) };
        assert_eq!(run(OneSided::PerTile), mixed);
    }

    #[test]
    fn zero_is_included_on_request() {
        let options = RangeOptions { symmetric: false, include_zero: true, ..Default::default() };
        assert_eq!(one(1.0, 2.0, &options), (2.0 / 255.0, Some(128.0)));
        let (scale, offset) = one(-2.0, -1.0, &options);
        assert_eq!((scale, offset.map(f32::round)), (2.0 / 255.0, Some(-127.0)));
    }

    #[test]
    fn powers_of_two_round_up() {
        for (scale, expected) in [
            (1.0, 1.0),
            (1.0000001, 2.0),
            (0.75, 1.0),
            (0.5, 0.5),
            (1e-45, 1e-45),
            (3e-45, 2.0f32.powi(-148)),
            (4e-45, 2.0f32.powi(-147)),
            (f32::MIN_POSITIVE * 0.75, f32::MIN_POSITIVE),
            (3e38, 2.0f32.powi(127)),
            (0.0, 0.0),
        ] {
            assert_eq!(power_of_two_above(scale), expected, "{scale}");
        }
    }

    #[test]
    fn narrow_grid_is_symmetric() {
        let grid = IntegerGrid::narrow(8).unwrap();
        let p = parameters_for_range(&[-2.0], &[1.0], grid, &RangeOptions::default()).unwrap();
        assert_eq!(p.scale, [2.0 / 127.0]);
        let (lo, hi) = quantization_range(p.affine(), grid).unwrap();
        assert_eq!((lo[0], hi[0]), (-2.0, 2.0));
    }

    #[test]
    fn unusable_input_is_refused_with_every_site() {
        let grid = IntegerGrid::signed(8).unwrap();
        let min = [0.0, f32::NAN, f32::NEG_INFINITY];
        let err =
            parameters_for_range(&min, &[1.0; 3], grid, &RangeOptions::default()).unwrap_err();
        assert_eq!(
            err.to_string(),
            "range is not finite: tile 1 has NaN to 1, tile 2 has -inf to 1"
        );
        let unsigned = IntegerGrid::unsigned(8).unwrap();
        assert!(parameters_for_range(&[0.0], &[1.0], unsigned, &RangeOptions::default()).is_err());
        let binary = IntegerGrid::signed(1).unwrap();
        assert!(parameters_for_range(&[0.0], &[1.0], binary, &RangeOptions::default()).is_err());
        let floor = RangeOptions { scale_floor: 0.0, ..Default::default() };
        assert!(parameters_for_range(&[0.0], &[1.0], grid, &floor).is_err());
    }
}
