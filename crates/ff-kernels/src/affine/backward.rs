//! Gradients of fake quantization.

use super::{Affine, Bounds};
use crate::error::{KernelError, check_len};
use crate::grid::IntegerGrid;
use crate::map::{Step, Steps};
use crate::reduce::{Fold, MAX_SEGMENT, Row, fold, total};
use crate::tiling::Tiling;

/// Gradients of the parameters, one per tile (or one, if one parameter stands for all tiles).
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    /// Gradient of the scales. `[num_tiles]`
    pub scale: Vec<f32>,
    /// Gradient of the offsets, if there are offsets. `[num_tiles]`
    pub offset: Option<Vec<f32>>,
}

/// The three gradients of [`fake_quantize`](crate::fake_quantize) in one pass.
///
/// With upstream gradient `g`, `o = round(offset)`, `p = x/s - o`, `r = round(p)` and `clipped` =
/// `r < lo` or `r > hi` (spec §4.5):
///
/// ```text
/// grad_x      = 0 if clipped else g
/// grad_scale  = Σ over the tile of  g · (clipped ? (lo or hi) + o : r - p)
/// grad_offset = Σ over the tile of  (clipped ? s · g : 0)
/// ```
///
/// Terms are f32; sums are f64, added in an order that depends on the tiling only, then rounded to
/// f32. `x` may be a strided view; `grad_out` and `grad_x` are contiguous.
///
/// # Errors
/// Slices of the wrong length; scales that are not positive and finite.
///
/// ```
/// use ff_kernels::{Affine, IntegerGrid, Tiling, fake_quantize_backward};
/// let tiling = Tiling::whole(&[4])?;
/// let affine = Affine { scale: &[0.5], offset: Some(&[0.2]) };
/// let (x, g, mut grad_x) = ([-10.0, 0.3, 0.9, 10.0], [1.0; 4], [0.0; 4]);
/// let grads = fake_quantize_backward(&x, &tiling, affine, IntegerGrid::signed(3)?, &g, &mut grad_x)?;
/// assert_eq!(grad_x, [0.0, 1.0, 1.0, 0.0]);
/// assert!((grads.scale[0] + 0.4).abs() < 1e-6);
/// assert_eq!(grads.offset, Some(vec![1.0]));
/// # Ok::<(), ff_kernels::KernelError>(())
/// ```
pub fn fake_quantize_backward(
    x: &[f32],
    tiling: &Tiling,
    affine: Affine<'_>,
    grid: IntegerGrid,
    grad_out: &[f32],
    grad_x: &mut [f32],
) -> Result<Gradients, KernelError> {
    let tiling = affine.check(tiling)?;
    tiling.check_input(x.len())?;
    check_len("upstream gradient", tiling.len(), grad_out.len())?;
    check_len("input gradient", tiling.len(), grad_x.len())?;
    let grid = Bounds::new(grid);
    let sums = if affine.offset.is_some() {
        fold(&Backward::<true> { grid, grad_out }, &tiling, Some(affine), x, grad_x)
    } else {
        fold(&Backward::<false> { grid, grad_out }, &tiling, Some(affine), x, grad_x)
    };
    Ok(Gradients {
        scale: sums.iter().map(|s| s.scale as f32).collect(),
        offset: affine.offset.map(|_| sums.iter().map(|s| s.offset as f32).collect()),
    })
}

/// `OFFSETS` tells whether the gradients of offsets are wanted.
struct Backward<'a, const OFFSETS: bool> {
    grid: Bounds,
    grad_out: &'a [f32],
}

#[derive(Clone, Copy, Default)]
struct Sums {
    scale: f64,
    offset: f64,
}

/// What one element adds to the gradients of its input, scale and offset; `offset` is rounded.
#[inline(always)]
pub(super) fn terms(grid: Bounds, x: f32, g: f32, scale: f32, offset: f32) -> (f32, f32, f32) {
    let p = x / scale - offset;
    let r = p.round_ties_even();
    let (below, above) = (r < grid.lo, r > grid.hi);
    let clipped = below | above;
    let bound = if below { grid.lo } else { grid.hi } + offset;
    let slope = if clipped { bound } else { r - p };
    (if clipped { 0.0 } else { g }, g * slope, if clipped { scale * g } else { 0.0 })
}

struct Lanes {
    scales: Vec<f64>,
    offsets: Vec<f64>,
    /// The terms of a segment, for the scale's gradient and the offset's.
    terms: [[f32; MAX_SEGMENT]; 2],
}

impl<const OFFSETS: bool> Fold for Backward<'_, OFFSETS> {
    type Acc = Sums;
    type Lanes = Lanes;
    const HAS_OUTPUT: bool = true;

    fn empty(&self) -> Sums {
        Sums::default()
    }

    #[inline(always)]
    fn merge(&self, a: Sums, b: Sums) -> Sums {
        Sums { scale: a.scale + b.scale, offset: a.offset + b.offset }
    }

    #[inline(always)]
    fn segment(&self, lanes: &mut Lanes, Row { x, pos, out }: Row<'_>, step: Step) -> Sums {
        let (scale, offset) = (step.scale, step.offset.round_ties_even());
        let g = &self.grad_out[pos..][..x.len()];
        // Terms first, then their sums: loops that do one thing stay in registers.
        let n = x.len();
        let [of_scale, of_offset] = &mut lanes.terms;
        let (of_scale, of_offset) = (&mut of_scale[..n], &mut of_offset[..n]);
        let out = &mut out[..n];
        for i in 0..n {
            let (grad_x, ds, d_o) = terms(self.grid, x[i], g[i], scale, offset);
            (out[i], of_scale[i]) = (grad_x, ds);
            if OFFSETS {
                of_offset[i] = d_o;
            }
        }
        let offset = if OFFSETS { total(of_offset) } else { 0.0 };
        Sums { scale: total(of_scale), offset }
    }

    fn new_lanes(&self, len: usize) -> Lanes {
        Lanes { scales: vec![0.0; len], offsets: vec![0.0; len], terms: [[0.0; MAX_SEGMENT]; 2] }
    }

    #[inline(always)]
    fn lanes<const R: usize>(
        &self,
        lanes: &mut Lanes,
        at: usize,
        rows: [Row<'_>; R],
        Steps { scale, offset, .. }: Steps<'_>,
    ) {
        for Row { x, pos, out } in rows {
            let n = x.len();
            let g = &self.grad_out[pos..][..n];
            let (scale, offset, out) = (&scale[..n], &offset[..n], &mut out[..n]);
            let scales = &mut lanes.scales[at..][..n];
            let offsets = &mut lanes.offsets[at..][..n];
            for i in 0..n {
                let offset = offset[i].round_ties_even();
                let (grad_x, ds, d_o) = terms(self.grid, x[i], g[i], scale[i], offset);
                out[i] = grad_x;
                scales[i] += f64::from(ds);
                if OFFSETS {
                    offsets[i] += f64::from(d_o);
                }
            }
        }
    }

    fn take_lane(&self, lanes: &mut Lanes, at: usize) -> Sums {
        let take = std::mem::take;
        Sums { scale: take(&mut lanes.scales[at]), offset: take(&mut lanes.offsets[at]) }
    }
}
