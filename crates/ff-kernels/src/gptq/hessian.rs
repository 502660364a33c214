//! The second moments of a layer's inputs.

use rayon::prelude::*;

use crate::error::{KernelError, KernelErrorKind, check_finite, check_len};
use crate::lanes::{Fused, Lanes, dispatch_fused};
use crate::product::{DEPTH, Lane, PANEL, Tile, WIDTH, add_product_wide};

/// `H = 2/n · Σ x xᵀ` over `n` samples `x` of `features` numbers: the Hessian of a linear layer's squared output error
/// with respect to a row of its weight (spec §10.2).
///
/// Samples are rows. Their order matters to the last bit, how they are dealt out to calls of [`Hessian::add`] does not,
/// nor does the number of threads.
///
/// Only one triangle is computed. Sums are kept in f64; products are summed in f32 over at most 256 samples first,
/// with fused multiplications where the machine has them, so the last bits depend on the machine. What was added is
/// only read: the caller's samples stay as they are.
///
/// ```
/// use ff_kernels::Hessian;
/// let mut hessian = Hessian::new(2)?;
/// hessian.add(&[1.0, 2.0, 3.0, 0.0])?; // two samples
/// assert_eq!(hessian.matrix(), [10.0, 2.0, 2.0, 4.0]);
/// # Ok::<(), ff_kernels::KernelError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Hessian {
    features: usize,
    count: u64,
    layout: Layout,
    /// The sums of samples that are not pending, as [`Layout`] says.
    sums: Vec<Tile<f64>>,
    /// Samples that wait until there are enough: `[BATCH / DEPTH, strips, DEPTH]`.
    pending: Vec<Lane<f32>>,
    /// The same in panels: `[BATCH / DEPTH, strips, WIDTH / PANEL, DEPTH]`.
    panels: Vec<[f32; PANEL]>,
    num_pending: usize,
}

/// Samples that are taken in together: while a block of sums is in the second cache, it takes in all of them.
const BATCH: usize = 4 * DEPTH;
/// The largest side of a block.
const MAX_BLOCK: usize = 256;

/// Where sums lie: the lower triangle in square blocks, row by row of blocks; inside a block strips of 32 columns;
/// inside a strip tiles of 8 rows.
#[derive(Debug, Clone, Copy)]
struct Layout {
    /// Strips of all features.
    strips: usize,
    /// Strips of a block.
    block: usize,
}

impl Layout {
    fn new(features: usize) -> Self {
        let strips = features.div_ceil(WIDTH).max(1);
        Self { strips, block: strips.min(MAX_BLOCK / WIDTH) }
    }

    /// Blocks along a side.
    fn blocks(self) -> usize {
        self.strips.div_ceil(self.block)
    }

    /// Tiles along a strip of a block.
    fn strip_tiles(self) -> usize {
        self.block * WIDTH / PANEL
    }

    /// Tiles of a block.
    fn block_tiles(self) -> usize {
        self.block * self.strip_tiles()
    }

    /// Tiles of all blocks.
    fn tiles(self) -> usize {
        self.blocks() * (self.blocks() + 1) / 2 * self.block_tiles()
    }

    /// Where the sum of a row and a column, which is not above it, lies: the tile and the place in it.
    #[inline(always)]
    fn at(self, row: usize, column: usize) -> (usize, usize, usize) {
        let side = self.block * WIDTH;
        let (block_row, block_column) = (row / side, column / side);
        let (row, column) = (row % side, column % side);
        let block = block_row * (block_row + 1) / 2 + block_column;
        let tile = block * self.block_tiles() + column / WIDTH * self.strip_tiles() + row / PANEL;
        (tile, row % PANEL, column % WIDTH)
    }
}

impl Hessian {
    /// No samples yet.
    ///
    /// # Errors
    /// So many features that their sums do not fit memory.
    pub fn new(features: usize) -> Result<Self, KernelError> {
        let side = features.div_ceil(MAX_BLOCK).saturating_mul(MAX_BLOCK);
        let bytes = side.checked_mul(side).and_then(|n| n.checked_mul(size_of::<f64>()));
        if bytes.is_none_or(|n| n > isize::MAX as usize) {
            return Err(KernelErrorKind::TooLarge { shape: vec![features, features] }.into());
        }
        let layout = Layout::new(features);
        let mut sums = Vec::new();
        if sums.try_reserve_exact(layout.tiles()).is_err() {
            return Err(KernelErrorKind::TooLarge { shape: vec![features, features] }.into());
        }
        sums.resize(layout.tiles(), [Lane::default(); PANEL]);
        Ok(Self {
            features,
            count: 0,
            layout,
            sums,
            pending: Vec::new(),
            panels: Vec::new(),
            num_pending: 0,
        })
    }

    /// What [`Hessian::lower`] and [`Hessian::count`] gave: sums that were saved are taken up again.
    ///
    /// # Errors
    /// A triangle of the wrong size, or with numbers that are not finite; too many features.
    pub fn from_lower(features: usize, count: u64, lower: &[f64]) -> Result<Self, KernelError> {
        let mut hessian = Self::new(features)?;
        check_len("lower triangle", features * (features + 1) / 2, lower.len())?;
        check_finite(lower.iter().map(|v| v.is_finite()))?;
        hessian.count = count;
        let mut values = lower.iter();
        for row in 0..features {
            for (column, value) in (0..=row).zip(&mut values) {
                let (tile, r, c) = hessian.layout.at(row, column);
                hessian.sums[tile][r][c] = *value;
            }
        }
        Ok(hessian)
    }

    /// Numbers of a sample.
    pub fn features(&self) -> usize {
        self.features
    }

    /// Samples added.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Adds samples, `[samples, features]`.
    ///
    /// # Errors
    /// A slice that is not made of whole samples; numbers that are not finite. Nothing is added then.
    pub fn add(&mut self, samples: &[f32]) -> Result<(), KernelError> {
        let n = self.features;
        if n == 0 || !samples.len().is_multiple_of(n) {
            let expected = samples.len().checked_div(n).map_or(0, |rows| (rows + 1) * n);
            check_len("samples (whole rows of features)", expected, samples.len())?;
            return Ok(());
        }
        let finite =
            |part: &[f32]| part.iter().fold(true, |all, v| all & (v.abs() < f32::INFINITY));
        if !samples.par_chunks(1 << 16).all(finite) {
            check_finite(samples.iter().map(|v| v.is_finite()))?;
        }
        self.count += (samples.len() / n) as u64;
        let mut rest = samples;
        while !rest.is_empty() {
            let depth = self.num_pending / DEPTH;
            let first = self.num_pending % DEPTH;
            let rows = (rest.len() / n).min(DEPTH - first);
            let (now, later) = rest.split_at(rows * n);
            rest = later;
            self.pack(depth, first, now);
            self.num_pending += rows;
            if self.num_pending == BATCH {
                self.take_in();
            }
        }
        Ok(())
    }

    /// Puts samples where they wait.
    fn pack(&mut self, depth: usize, first: usize, samples: &[f32]) {
        let n = self.features;
        let part = self.layout.strips * DEPTH;
        if self.pending.is_empty() {
            self.pending = vec![Lane::default(); BATCH / DEPTH * part];
            self.panels = vec![[0.0; PANEL]; BATCH / DEPTH * part * (WIDTH / PANEL)];
        }
        let lanes = self.pending[depth * part..][..part].par_chunks_mut(DEPTH);
        let part = part * (WIDTH / PANEL);
        let panels = self.panels[depth * part..][..part].par_chunks_mut(DEPTH * (WIDTH / PANEL));
        lanes.zip(panels).enumerate().for_each(|(strip, (lanes, panels))| {
            let columns = strip * WIDTH..n.min((strip + 1) * WIDTH);
            for (k, row) in samples.chunks_exact(n).enumerate() {
                let lane = &mut lanes[first + k];
                lane[..columns.len()].copy_from_slice(&row[columns.clone()]);
                for (panel, values) in lane.as_chunks().0.iter().enumerate() {
                    panels[panel * DEPTH + first + k] = *values;
                }
            }
        });
    }

    /// Adds the samples of another Hessian.
    ///
    /// # Errors
    /// Another number of features.
    pub fn merge(&mut self, mut other: Hessian) -> Result<(), KernelError> {
        check_len("features of the hessian to merge", self.features, other.features)?;
        self.take_in();
        other.take_in();
        self.count += other.count;
        for (sums, others) in self.sums.as_flattened_mut().iter_mut().zip(other.sums.as_flattened())
        {
            sums.iter_mut().zip(others).for_each(|(sum, other)| *sum += other);
        }
        Ok(())
    }

    /// `Σ x xᵀ`, its lower triangle with the diagonal, row by row: `features · (features + 1) / 2` numbers. With
    /// [`Hessian::count`] this is all there is to save.
    pub fn lower(&mut self) -> Vec<f64> {
        self.take_in();
        let n = self.features;
        let mut lower = Vec::with_capacity(n * (n + 1) / 2);
        for row in 0..n {
            lower.extend((0..=row).map(|column| self.sum(row, column)));
        }
        lower
    }

    /// `H`, all of it: `[features, features]`. Zeros without samples.
    pub fn matrix(&mut self) -> Vec<f64> {
        self.take_in();
        let n = self.features;
        let mut matrix = vec![0.0; n * n];
        for (row, out) in matrix.chunks_exact_mut(n.max(1)).enumerate() {
            out.iter_mut().enumerate().for_each(|(column, out)| *out = self.value(row, column));
        }
        matrix
    }

    /// The features that were zero in every sample, ascending.
    pub fn dead_columns(&mut self) -> Vec<usize> {
        self.take_in();
        (0..self.features).filter(|&i| self.sum(i, i) == 0.0).collect()
    }

    /// Takes in the samples that wait.
    pub(super) fn take_in(&mut self) {
        if self.num_pending == 0 {
            return;
        }
        let layout = self.layout;
        let pairs: Vec<(usize, usize)> = (0..layout.blocks())
            .flat_map(|row| (0..=row).map(move |column| (row, column)))
            .collect();
        let part = layout.strips * DEPTH;
        let lanes = self.pending.chunks_exact(part);
        let panels = self.panels.chunks_exact(part * (WIDTH / PANEL));
        let parts: Vec<Part<'_>> = lanes.zip(panels).collect();
        let num_pending = self.num_pending;
        self.sums.par_chunks_mut(layout.block_tiles()).zip(&pairs).for_each(|(sums, pair)| {
            dispatch_fused::<f32, _>(Block {
                layout,
                pair: *pair,
                parts: &parts,
                num_pending,
                sums,
            });
        });
        self.num_pending = 0;
    }

    /// A sum of samples that are not pending; either triangle may be asked for.
    #[inline(always)]
    fn sum(&self, row: usize, column: usize) -> f64 {
        let (tile, row, column) = self.layout.at(row.max(column), row.min(column));
        self.sums[tile][row][column]
    }

    /// A number of `H`, when no samples are pending.
    #[inline(always)]
    pub(super) fn value(&self, row: usize, column: usize) -> f64 {
        self.sum(row, column) * (2.0 / self.count.max(1) as f64)
    }
}

/// `DEPTH` samples, in strips and in panels.
type Part<'a> = (&'a [Lane<f32>], &'a [[f32; PANEL]]);

/// One block of sums takes in the samples that wait.
struct Block<'a> {
    layout: Layout,
    /// Which block: row and column.
    pair: (usize, usize),
    parts: &'a [Part<'a>],
    num_pending: usize,
    sums: &'a mut [Tile<f64>],
}

impl Fused<f32> for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<f32>>(self, lanes: L) {
        let Block { layout, pair: (row, column), parts, num_pending, sums } = self;
        let strips =
            |block: usize| block * layout.block..layout.strips.min((block + 1) * layout.block);
        for (number, (lanes_of, panels_of)) in parts.iter().enumerate() {
            let depth = num_pending.saturating_sub(number * DEPTH).min(DEPTH);
            if depth == 0 {
                break;
            }
            for (right, sums) in strips(column).zip(sums.chunks_exact_mut(layout.strip_tiles())) {
                let below = strips(row).zip(sums.chunks_exact_mut(WIDTH / PANEL));
                for (left, sums) in below.filter(|(left, _)| *left >= right) {
                    let panels = panels_of[left * DEPTH * (WIDTH / PANEL)..].chunks_exact(DEPTH);
                    let right = &lanes_of[right * DEPTH..][..depth];
                    for (left, sums) in panels.zip(sums) {
                        add_product_wide(lanes, &left[..depth], right, sums);
                    }
                }
            }
        }
    }
}
