//! Rows that nearest rounding serves better.

use rayon::prelude::*;

use super::layer::{Layer, Tiles};
use super::update::{Accumulate, CHUNK, Judge, Nearest, Strip};
use super::{DeadColumns, GptqResult, NearestRounding};
use crate::affine::Bounds;
use crate::lanes::dispatch_fused;
use crate::product::WIDTH;

/// What two losses must differ by, as a part of them, for the difference to be more than rounding.
const TOLERANCE: f64 = 1e-3;

/// The loss of a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Loss {
    pub(super) damped: f64,
    /// What damping adds.
    pub(super) penalty: f64,
}

impl Loss {
    pub(super) fn undamped(&self) -> f64 {
        (self.damped - self.penalty).max(0.0)
    }

    /// The loss is at least this.
    fn at_least(&self) -> f64 {
        self.damped * (1.0 - TOLERANCE) - self.penalty
    }

    /// The loss is at most this.
    fn at_most(&self) -> f64 {
        self.damped * (1.0 + TOLERANCE) - self.penalty
    }

    fn add(self, other: &Loss) -> Loss {
        Loss { damped: self.damped + other.damped, penalty: self.penalty + other.penalty }
    }
}

impl Strip {
    pub(super) fn loss(&self, row: usize) -> Loss {
        Loss { damped: self.damped[row], penalty: self.penalty[row] }
    }
}

impl Layer<'_> {
    /// The loss of rounding each row to nearest; infinite where that is certainly more than `losses`.
    pub(super) fn nearest(&self, losses: &[Loss], tiles: &Tiles) -> Vec<Loss> {
        let rounded: Vec<f32> = tiles.offset.iter().map(|o| o.round_ties_even()).collect();
        let (factor, grid) = (self.factor, self.grid(tiles, &rounded));
        // Rows that are decided together need all of their losses.
        let ends_early = self.options.nearest == NearestRounding::Guard && self.unit() == 1;
        let num_strips = self.rows.div_ceil(WIDTH);
        let panel = self.panel(num_strips);
        let mut found = vec![Loss { damped: f64::INFINITY, penalty: 0.0 }; self.rows];
        found.par_chunks_mut(panel * WIDTH).enumerate().for_each(|(number, found)| {
            let first = number * panel;
            let numbers = first..num_strips.min(first + panel);
            let mut strips: Vec<Strip> = numbers
                .map(|number| {
                    let mut strip = Strip::default();
                    self.load(number, 0, &mut strip);
                    strip
                })
                .collect();
            for strip in &mut strips {
                dispatch_fused(Nearest { strip, factor, grid });
            }
            let mut work = Vec::new();
            for from in (0..self.columns).step_by(CHUNK) {
                let columns = from..self.columns.min(from + CHUNK);
                dispatch_fused(Accumulate {
                    strips: &mut strips,
                    factor,
                    columns: columns.clone(),
                });
                for strip in &mut strips {
                    dispatch_fused(Judge {
                        strip,
                        factor,
                        columns: columns.clone(),
                        work: &mut work,
                    });
                }
                if ends_early {
                    strips.retain(|strip| {
                        let mut rows = losses[strip.first..][..strip.live].iter().enumerate();
                        !rows.all(|(r, loss)| strip.loss(r).at_least() > loss.at_most())
                    });
                }
            }
            for strip in strips {
                for r in 0..strip.live {
                    found[strip.first - first * WIDTH + r] = strip.loss(r);
                }
            }
        });
        found
    }

    /// Rows that are decided together: those whose parameters were computed anew together.
    fn unit(&self) -> usize {
        if self.regroups() { self.tile.0 } else { 1 }
    }

    /// Rounds the rows to nearest that are not certainly served better by what was found.
    pub(super) fn prefer_nearest(
        &self,
        losses: &mut [Loss],
        nearest: &[Loss],
        initial: &Tiles,
        tiles: &mut Tiles,
        result: &mut GptqResult,
    ) {
        let (unit, tile_rows) = (self.unit(), self.tile_rows());
        let bounds = Bounds::new(self.grid);
        let total = |losses: &[Loss]| {
            losses.iter().fold(Loss { damped: 0.0, penalty: 0.0 }, |sum, loss| sum.add(loss))
        };
        for first in (0..self.rows).step_by(unit.max(1)) {
            let rows = first..first + unit;
            if total(&nearest[rows.clone()]).at_least() > total(&losses[rows.clone()]).at_most() {
                continue;
            }
            losses[rows.clone()].copy_from_slice(&nearest[rows.clone()]);
            if self.regroups() {
                for at in (first / self.tile.0..tiles.scale.len()).step_by(tile_rows) {
                    (tiles.scale[at], tiles.offset[at]) = (initial.scale[at], initial.offset[at]);
                }
            }
            let [row_step, column_step] = [self.tiling.strides()[0], self.tiling.strides()[1]];
            for row in rows {
                let out = &mut result.weight[row * self.columns..][..self.columns];
                let mut differs = false;
                for (column, out) in out.iter_mut().enumerate() {
                    let at = column / self.tile.1 * tile_rows + row / self.tile.0;
                    let (scale, offset) = (initial.scale[at], initial.offset[at].round_ties_even());
                    let zero = self.dead[column] && self.options.dead_columns == DeadColumns::Zero;
                    let weight = self.weight[row * row_step + column * column_step];
                    let weight = if zero { 0.0 } else { weight };
                    let code = bounds.clamp((weight / scale - offset).round_ties_even());
                    let value = (code + offset) * scale;
                    differs |= value != *out;
                    *out = value;
                }
                result.nearest_rows += usize::from(differs);
            }
        }
    }
}
