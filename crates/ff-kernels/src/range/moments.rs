//! Sums per tile.

use crate::error::KernelError;
use crate::map::{Step, Steps};
use crate::reduce::{Fold, MAX_SEGMENT, Row, fold, total, total_of};
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
    fn segment(&self, _: &mut Self::Lanes, Row { x, .. }: Row<'_>, _: Step) -> Moments {
        let mut sums = Moments::default();
        // Twice over what the first pass has brought to the nearest cache: loops that do one thing stay in registers.
        for x in x.chunks(MAX_SEGMENT) {
            sums.sum += total(x);
            sums.sum_squared += total_of(x, |x| x * x);
        }
        sums
    }

    fn new_lanes(&self, len: usize) -> Self::Lanes {
        (vec![0.0; len], vec![0.0; len])
    }

    #[inline(always)]
    fn lanes<const R: usize>(
        &self,
        (sums, squares): &mut Self::Lanes,
        at: usize,
        rows: [Row<'_>; R],
        _: Steps<'_>,
    ) {
        let n = rows[0].x.len();
        let rows = rows.map(|row| &row.x[..n]);
        let (sums, squares) = (&mut sums[at..][..n], &mut squares[at..][..n]);
        for i in 0..n {
            let (mut sum, mut square) = (sums[i], squares[i]);
            for row in rows {
                let x = f64::from(row[i]);
                sum += x;
                square += x * x;
            }
            (sums[i], squares[i]) = (sum, square);
        }
    }

    fn take_lane(&self, (sums, squares): &mut Self::Lanes, at: usize) -> Moments {
        let take = std::mem::take;
        Moments { len: 0, sum: take(&mut sums[at]), sum_squared: take(&mut squares[at]) }
    }
}
