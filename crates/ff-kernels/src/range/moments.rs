//! Sums per tile.

use crate::error::KernelError;
use crate::reduce::{Fold, add, by_halves, fold};
use crate::tiling::Tiling;

/// Sum and sum of squares of a tile, in f64.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Moments {
    /// Number of elements.
    pub len: u64,
    /// `Σ x`
    pub sum: f64,
    /// `Σ x²`
    pub sum_squared: f64,
}

impl Moments {
    /// Mean; NaN without elements.
    pub fn mean(&self) -> f64 {
        self.sum / self.len as f64
    }

    /// Mean of squares; NaN without elements.
    pub fn mean_squared(&self) -> f64 {
        self.sum_squared / self.len as f64
    }

    /// The moments of both parts together.
    #[must_use]
    pub fn merge(&self, other: &Moments) -> Moments {
        Moments {
            len: self.len + other.len,
            sum: self.sum + other.sum,
            sum_squared: self.sum_squared + other.sum_squared,
        }
    }
}

/// Sum and sum of squares of each tile of `x`, in one pass; f64, added in an order that depends on
/// the tiling only. NaN and infinities show in the sums.
///
/// # Errors
/// A slice of the wrong length.
///
/// ```
/// use ff_kernels::{Tiling, moments};
/// let per_column = moments(&[1.0, 2.0, 3.0, 4.0], &Tiling::new(&[2, 2], &[2, 1])?)?;
/// assert_eq!((per_column[0].mean(), per_column[1].mean()), (2.0, 3.0));
/// assert_eq!(per_column[1].sum_squared, 20.0);
/// # Ok::<(), ff_kernels::KernelError>(())
/// ```
pub fn moments(x: &[f32], tiling: &Tiling) -> Result<Vec<Moments>, KernelError> {
    tiling.check_input(x.len())?;
    let mut sums = fold(&Sums, tiling, None, x, &mut []);
    // The number is the same for all tiles and is not counted.
    sums.iter_mut().for_each(|s| s.len = tiling.tile_len() as u64);
    Ok(sums)
}

/// Twin of [`moments`].
///
/// # Errors
/// As [`moments`].
pub fn moments_reference(x: &[f32], tiling: &Tiling) -> Result<Vec<Moments>, KernelError> {
    tiling.check_input(x.len())?;
    let of_tile = |tile| {
        tiling.tile_elements(tile).fold(Moments::default(), |m, e| {
            let x = f64::from(x[e.input]);
            Moments { len: m.len + 1, sum: m.sum + x, sum_squared: m.sum_squared + x * x }
        })
    };
    Ok((0..tiling.num_tiles()).map(of_tile).collect())
}

struct Sums;

const WIDTH: usize = 16;

impl Fold for Sums {
    type Acc = Moments;
    type Lanes = (Vec<f64>, Vec<f64>);
    const HAS_OUTPUT: bool = false;

    fn empty(&self) -> Moments {
        Moments::default()
    }

    #[inline(always)]
    fn merge(&self, a: Moments, b: Moments) -> Moments {
        a.merge(&b)
    }

    #[inline(always)]
    fn segment(&self, x: &[f32], _: f32, _: f32, _: usize, _: &mut [f32]) -> Moments {
        let (mut sums, mut squares) = ([0.0f64; WIDTH], [0.0f64; WIDTH]);
        let (chunks, rest) = x.as_chunks::<WIDTH>();
        for x in chunks {
            for i in 0..WIDTH {
                let x = f64::from(x[i]);
                sums[i] += x;
                squares[i] += x * x;
            }
        }
        for (i, &x) in rest.iter().enumerate() {
            let x = f64::from(x);
            sums[i] += x;
            squares[i] += x * x;
        }
        Moments { len: 0, sum: by_halves(sums, add), sum_squared: by_halves(squares, add) }
    }

    fn new_lanes(&self, len: usize) -> Self::Lanes {
        (vec![0.0; len], vec![0.0; len])
    }

    #[inline(always)]
    fn lanes(
        &self,
        (sums, squares): &mut Self::Lanes,
        at: usize,
        x: &[f32],
        _: (&[f32], &[f32]),
        _: usize,
        _: &mut [f32],
    ) {
        let n = x.len();
        let (sums, squares) = (&mut sums[at..][..n], &mut squares[at..][..n]);
        for i in 0..n {
            let x = f64::from(x[i]);
            sums[i] += x;
            squares[i] += x * x;
        }
    }

    fn take_lane(&self, (sums, squares): &mut Self::Lanes, at: usize) -> Moments {
        let take = std::mem::take;
        Moments { len: 0, sum: take(&mut sums[at]), sum_squared: take(&mut squares[at]) }
    }
}
