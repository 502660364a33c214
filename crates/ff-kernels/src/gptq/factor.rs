//! The triangular factor of a Hessian.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::{MatMut, Par};
use rayon::prelude::*;

use super::hessian::Hessian;
use crate::error::{KernelError, KernelErrorKind};
use crate::product::PANEL;

/// How [`HessianFactor::new`] makes a Hessian invertible, and in which order columns are rounded. The default is the
/// reference's (spec §10.1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FactorOptions {
    /// What is added to the diagonal, as a part of the diagonal's mean. Not negative; default 0.01.
    pub perc_damp: f64,
    /// How far `perc_damp` is raised, tenfold each time, while the Hessian has no usable factor. The reference gives
    /// up at the first. Default 10, at which every Hessian of finite samples has one.
    pub max_perc_damp: f64,
    /// Rounds columns with large diagonals first, instead of from left to right. Default `false`.
    pub act_order: bool,
}

impl Default for FactorOptions {
    fn default() -> Self {
        FactorOptions { perc_damp: 0.01, max_perc_damp: 10.0, act_order: false }
    }
}

/// The triangular factor `R` of a damped Hessian: `R Rᵀ = P (H + λI) Pᵀ`, upper triangular, where `P` orders the columns.
///
/// The reference inverts the Hessian and factors the inverse, `H⁻¹ = Uᵀ U`. `R` is `U⁻¹`, found with one factorization
/// and no inverse: a quarter of the work. It is factored in f64 and kept in f32; the same bytes for any number of threads.
///
/// Layers with the same inputs share one factor.
#[derive(Debug, Clone)]
pub struct HessianFactor {
    /// Which column is rounded when.
    order: Vec<usize>,
    act_order: bool,
    perc_damp: f64,
    escalations: u32,
    dead: Vec<usize>,
    /// What was added to the diagonal, for columns in order.
    added: Vec<f64>,
    /// `R` in groups of 8 columns, each with the rows down to its diagonal.
    groups: Vec<[f32; PANEL]>,
}

/// What damping starts from when none was asked for and some is needed.
const FIRST_DAMP: f64 = 1e-6;
/// The least square of a number on the factor's diagonal, as a part of the damped Hessian's. Below it, what is left of
/// the column beside those before it is noise of rounding.
const MIN_PIVOT: f64 = 1e-9;

impl HessianFactor {
    /// Factors a Hessian.
    ///
    /// Features that were never seen other than zero get a diagonal of 1, as in the reference. If the damped Hessian
    /// is not positive definite, or so nearly not that rounding decides, damping is raised tenfold up to
    /// [`FactorOptions::max_perc_damp`]; [`HessianFactor::perc_damp`] tells what was used.
    ///
    /// # Errors
    /// Options outside their domains; samples so large that their squares overflow; a Hessian without a factor at the
    /// largest damping allowed.
    pub fn new(hessian: &mut Hessian, options: &FactorOptions) -> Result<Self, KernelError> {
        let domain = |what, must_be, found: f64| KernelErrorKind::Option { what, must_be, found };
        if !(options.perc_damp >= 0.0 && options.perc_damp.is_finite()) {
            let must_be = "not negative and finite";
            return Err(domain("damping", must_be, options.perc_damp).into());
        }
        if !(options.max_perc_damp >= options.perc_damp && options.max_perc_damp.is_finite()) {
            let must_be = "not below the damping, and finite";
            return Err(domain("largest damping", must_be, options.max_perc_damp).into());
        }
        hessian.take_in();
        let n = hessian.features();
        let mut diagonal: Vec<f64> = (0..n).map(|i| hessian.value(i, i)).collect();
        let bad: Vec<usize> = (0..n).filter(|&i| !diagonal[i].is_finite()).collect();
        if !bad.is_empty() {
            let first = bad.iter().copied().take(crate::error::SITES_SHOWN).collect();
            return Err(KernelErrorKind::NotFinite { count: bad.len(), first }.into());
        }
        let dead: Vec<usize> = (0..n).filter(|&i| diagonal[i] == 0.0).collect();
        dead.iter().for_each(|&i| diagonal[i] = 1.0);
        let mean = diagonal.iter().sum::<f64>() / n.max(1) as f64;
        let mut order: Vec<usize> = (0..n).collect();
        if options.act_order {
            // The reference compares them in f32.
            order.sort_by(|&a, &b| (diagonal[b] as f32).total_cmp(&(diagonal[a] as f32)));
        }

        let mut perc_damp = options.perc_damp;
        let mut escalations = 0;
        let mut matrix = vec![0.0; n * n];
        loop {
            let damped: Vec<f64> = order.iter().map(|&i| diagonal[i] + perc_damp * mean).collect();
            if factor(hessian, &order, &damped, &mut matrix) {
                break;
            }
            let next = if perc_damp == 0.0 { FIRST_DAMP } else { perc_damp * 10.0 };
            if next > options.max_perc_damp {
                return Err(KernelErrorKind::NotPositiveDefinite { damping: perc_damp }.into());
            }
            perc_damp = next;
            escalations += 1;
        }

        let added =
            order.iter().map(|&i| diagonal[i] + perc_damp * mean - hessian.value(i, i)).collect();
        let groups = (0..n.div_ceil(PANEL)).into_par_iter().flat_map_iter(|group| {
            let matrix = &matrix;
            (0..(group + 1) * PANEL).map(move |row| {
                std::array::from_fn(|i| {
                    // R and the lower factor are each other, seen from the opposite corner.
                    let column = group * PANEL + i;
                    let inside = row <= column && column < n;
                    if inside { matrix[(n - 1 - column) * n + n - 1 - row] as f32 } else { 0.0 }
                })
            })
        });
        let groups = groups.collect();
        let act_order = options.act_order;
        Ok(Self { order, act_order, perc_damp, escalations, dead, added, groups })
    }

    /// Columns of the weights that it is for.
    pub fn features(&self) -> usize {
        self.order.len()
    }

    /// The damping used, as a part of the diagonal's mean: what was asked for, or more.
    pub fn perc_damp(&self) -> f64 {
        self.perc_damp
    }

    /// How many times damping had to be raised.
    pub fn escalations(&self) -> u32 {
        self.escalations
    }

    /// The features that were zero in every sample, ascending.
    pub fn dead_columns(&self) -> &[usize] {
        &self.dead
    }

    /// Which column is rounded when.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// Whether columns go by the size of their diagonals.
    pub fn act_order(&self) -> bool {
        self.act_order
    }

    /// What was added to the diagonal, for columns in order.
    pub(super) fn added(&self) -> &[f64] {
        &self.added
    }

    /// The rows of `R`, down to the diagonal, in a group of columns.
    #[inline(always)]
    pub(super) fn group(&self, group: usize) -> &[[f32; PANEL]] {
        &self.groups[group * (group + 1) / 2 * PANEL..][..(group + 1) * PANEL]
    }
}

/// Factors the Hessian, rows and columns in reverse order and with that diagonal, into the lower triangle of `matrix`
/// (column by column); says whether it can be used.
fn factor(hessian: &Hessian, order: &[usize], diagonal: &[f64], matrix: &mut [f64]) -> bool {
    let n = order.len();
    if n == 0 {
        return true;
    }
    matrix.par_chunks_exact_mut(n).enumerate().for_each(|(column, out)| {
        let here = order[n - 1 - column];
        for (row, out) in out.iter_mut().enumerate().skip(column) {
            *out = hessian.value(order[n - 1 - row], here);
        }
        out[column] = diagonal[n - 1 - column];
    });
    let par = Par::rayon(rayon::current_num_threads());
    let params = Default::default();
    let mut memory = MemBuffer::new(cholesky_in_place_scratch::<f64>(n, par, params));
    let view = MatMut::from_column_major_slice_mut(matrix, n, n);
    let stack = MemStack::new(&mut memory);
    if cholesky_in_place(view, Default::default(), par, stack, params).is_err() {
        return false;
    }
    (0..n).all(|i| {
        let pivot = matrix[i * n + i];
        pivot * pivot >= MIN_PIVOT * diagonal[n - 1 - i] && pivot.is_finite()
    })
}
