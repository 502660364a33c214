//! Dynamic quantization: parameters from the data itself.

use crate::error::{KernelError, KernelErrorKind, check_len};
use crate::grid::{Code, IntegerGrid};
use crate::range::{Parameters, RangeOptions, min_max, parameters_for_range};
use crate::tiling::Tiling;
use crate::{fake_quantize, quantize};

/// Parameters for the range that `x` has in each tile, with the offset rounded and always present
/// (zero where none is needed), as dynamic quantization stores them (spec §4.6).
///
/// # Errors
/// As [`min_max`] and [`parameters_for_range`]; data that is empty, or holds NaN or infinities (all
/// tiles are listed).
pub fn dynamic_parameters(
    x: &[f32],
    tiling: &Tiling,
    grid: IntegerGrid,
    options: &RangeOptions,
) -> Result<Parameters, KernelError> {
    tiling.check_input(x.len())?;
    if tiling.is_empty() {
        return Err(KernelErrorKind::NoData.into());
    }
    let range = min_max(x, tiling)?;
    range.check_finite()?;
    let mut parameters = parameters_for_range(&range.min, &range.max, grid, options)?;
    match &mut parameters.offset {
        Some(offset) => offset.iter_mut().for_each(|o| *o = o.round_ties_even()),
        none => *none = Some(vec![0.0; parameters.scale.len()]),
    }
    Ok(parameters)
}

/// Writes the codes of `x` on the grid that fits its own range, and gives back the parameters.
///
/// The data is read twice: once for its range, once to quantize it with [`quantize`].
///
/// # Errors
/// As [`dynamic_parameters`] and [`quantize`].
///
/// ```
/// use ff_kernels::{IntegerGrid, RangeOptions, Tiling, dynamic_quantize};
/// let tiling = Tiling::new(&[2, 3], &[1, 3])?;
/// let x = [0.0, 0.5, 1.5, -2.0, 0.0, 1.0];
/// let mut codes = [0i8; 6];
/// let options = RangeOptions { symmetric: false, ..Default::default() };
/// let p = dynamic_quantize(&x, &tiling, IntegerGrid::signed(2)?, &options, &mut codes)?;
/// assert_eq!(p.scale, [0.5, 1.0]);
/// assert_eq!(p.offset, Some(vec![2.0, 0.0]));
/// assert_eq!(codes, [-2, -1, 1, -2, 0, 1]);
/// # Ok::<(), ff_kernels::KernelError>(())
/// ```
pub fn dynamic_quantize<C: Code>(
    x: &[f32],
    tiling: &Tiling,
    grid: IntegerGrid,
    options: &RangeOptions,
    out: &mut [C],
) -> Result<Parameters, KernelError> {
    grid.check_fits::<C>()?;
    check_len("output", tiling.len(), out.len())?;
    let parameters = dynamic_parameters(x, tiling, grid, options)?;
    quantize(x, tiling, parameters.affine(), grid, out)?;
    Ok(parameters)
}

/// As [`dynamic_quantize`], but writes what the codes stand for.
///
/// # Errors
/// As [`dynamic_parameters`] and [`fake_quantize`].
pub fn dynamic_fake_quantize(
    x: &[f32],
    tiling: &Tiling,
    grid: IntegerGrid,
    options: &RangeOptions,
    out: &mut [f32],
) -> Result<Parameters, KernelError> {
    check_len("output", tiling.len(), out.len())?;
    let parameters = dynamic_parameters(x, tiling, grid, options)?;
    fake_quantize(x, tiling, parameters.affine(), grid, out)?;
    Ok(parameters)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asymmetric() -> RangeOptions {
        RangeOptions { symmetric: false, ..Default::default() }
    }

    #[test]
    fn equals_static_quantization_of_each_tile_with_its_own_range() {
        let x: Vec<f32> = (0..24).map(|i| ((37 * i) % 101 - 50) as f32 / 25.0).collect();
        let tiling = Tiling::new(&[4, 6], &[4, 1]).unwrap();
        let grid = IntegerGrid::signed(3).unwrap();
        let mut codes = [0i8; 24];
        let p = dynamic_quantize(&x, &tiling, grid, &asymmetric(), &mut codes).unwrap();
        assert_eq!(p.offset.as_deref(), Some(&[-2.0, 2.0, 1.0, -1.0, 0.0, 0.0][..]));
        // The codes of spec Appendix A.1, row 4.
        assert_eq!(codes[..6], [-4, -4, 1, -4, 0, 3]);
        let mut values = [0.0; 24];
        let again = dynamic_fake_quantize(&x, &tiling, grid, &asymmetric(), &mut values).unwrap();
        assert_eq!(again, p);
        let mut expected = [0.0; 24];
        crate::dequantize(&codes, &tiling, p.affine(), &mut expected).unwrap();
        assert_eq!(values, expected);
    }

    #[test]
    fn data_without_a_range_is_refused() {
        let grid = IntegerGrid::signed(8).unwrap();
        let run = |x: &[f32], tile: &[usize]| {
            let tiling = Tiling::new(&[x.len()], tile).unwrap();
            let mut out = vec![0i8; x.len()];
            dynamic_quantize(x, &tiling, grid, &asymmetric(), &mut out).unwrap_err().to_string()
        };
        assert_eq!(run(&[], &[0]), "tile without elements has no range");
        assert_eq!(
            run(&[0.0, f32::NAN, 1.0, f32::INFINITY], &[1]),
            "range is not finite: tile 1 has NaN to NaN, tile 3 has inf to inf"
        );
    }
}
