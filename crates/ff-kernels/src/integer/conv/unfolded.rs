//! Convolution as a product of the filter with unfolded input.
//!
//! The codes under the window at one output are a column; the product of the filter's rows with
//! some of these columns at a time gives those outputs of all channels of a group.

use std::ops::Range;

use rayon::prelude::*;

use super::{Job, PackedFilter};
use crate::integer::buffer::Buffer;
use crate::integer::finish::Sum;
use crate::integer::product::{MAX_TERMS, PackedLeft, Product};
use crate::integer::view::CodeView;
use crate::simd::{Vectorized, dispatch};

/// What an unfolded chunk, and its sums, may hold: they stay in the cache.
const CHUNK: usize = 1 << 18;

/// Computes chunks of outputs of all groups of all examples side by side.
pub(super) fn run<S: Sum>(
    job: &Job<'_>,
    product: &Product,
    x: CodeView<'_, 4>,
    (filter, packed): (&PackedFilter, &[Vec<PackedLeft>]),
    out: &mut [f32],
) {
    let [n_out, depth, height, width] = filter.shape();
    let (groups, terms) = (filter.groups(), depth * height * width);
    let per_group = n_out / groups;
    let positions = job.out_size[0] * job.out_size[1];
    let chunk = (CHUNK / terms.max(per_group).max(1)).clamp(64, 4096) / 32 * 32;

    let totals = channel_totals::<S>(job, x, groups, depth);
    let plane = x.shape()[2] * x.shape()[3];
    let fill = job.x.offset(0).clamp(-127, 128).wrapping_neg() as i8;
    // What padding that has no code adds to the product for each unit of the filter.
    let padded = job.window.padding != [[0; 2]; 2];
    let residue = if padded { i64::from(fill) + job.x.offset(0) } else { 0 };
    let channels: Vec<Channel<S>> = (0..n_out).map(|j| Channel::new(job, filter, j)).collect();
    // One task per example, group and chunk, with its piece of each output channel.
    let tasks: Vec<_> = out
        .chunks_mut(per_group * positions)
        .enumerate()
        .flat_map(|(at, out)| {
            let mut tasks: Vec<Vec<&mut [f32]>> = Vec::new();
            tasks.resize_with(positions.div_ceil(chunk), || Vec::with_capacity(per_group));
            for channel in out.chunks_mut(positions) {
                for (task, piece) in tasks.iter_mut().zip(channel.chunks_mut(chunk)) {
                    task.push(piece);
                }
            }
            tasks.into_iter().enumerate().map(move |(i, pieces)| (at, i * chunk, pieces))
        })
        .collect();
    tasks.into_par_iter().for_each(|(at, first, out)| {
        let (n, group) = (at / groups, at % groups);
        let unfold = Unfold {
            job,
            x,
            at: [n, group * depth],
            kernel: [height, width],
            first,
            len: out[0].len(),
            fill,
        };
        let len = unfold.len;
        let mut under = Buffer::<S>::zeros(len);
        unfold.window_totals(&totals[at * plane..][..plane], &mut under);
        let channels = &channels[group * per_group..][..per_group];
        let mut raw = Buffer::<i32>::take(per_group * len);
        let blocks = &packed[group][..];
        if let ([block], 0) = (blocks, residue) {
            unfold.multiply(product, block, 0..terms, &mut raw);
            dispatch(Finish { raw: &raw, under: &under, channels, out });
            return;
        }
        let mut total = Buffer::<S>::zeros(per_group * len);
        for (i, block) in blocks.iter().enumerate() {
            let first = i * MAX_TERMS;
            unfold.multiply(product, block, first..terms.min(first + MAX_TERMS), &mut raw);
            for (total, &raw) in total.iter_mut().zip(raw.iter()) {
                *total = total.plus(raw.into());
            }
        }
        if residue != 0 {
            for (j, total) in total.chunks_exact_mut(len).enumerate() {
                let taps = filter.taps(group * per_group + j);
                unfold.outside(|tap, range| {
                    // What this element of the window contributed to the product there.
                    let sum = taps[tap] - filter.lowest() * depth as i64;
                    let extra = S::of(residue.wrapping_mul(sum).wrapping_neg());
                    total[range].iter_mut().for_each(|total| *total = total.plus(extra));
                });
            }
        }
        dispatch(Finish { raw: &total, under: &under, channels, out });
    });
}

/// Sums of `q + o` over the channels of each group. `[batch, groups, height, width]`
fn channel_totals<S: Sum>(
    job: &Job<'_>,
    x: CodeView<'_, 4>,
    groups: usize,
    depth: usize,
) -> Vec<S> {
    let [batch, _, height, width] = x.shape();
    let plane = height * width;
    let start = S::of(job.x.offset(0).wrapping_mul(depth as i64));
    let mut totals = vec![start; batch * groups * plane];
    if totals.is_empty() {
        return totals;
    }
    totals.par_chunks_mut(plane).enumerate().for_each(|(at, totals)| {
        let (n, first) = (at / groups, at % groups * depth);
        for channel in first..first + depth {
            for (y, totals) in totals.chunks_exact_mut(width).enumerate() {
                let start = x.at([n, channel, y, 0]);
                dispatch(AddRow { codes: &x.memory()[start..], step: x.strides()[3], totals });
            }
        }
    });
    totals
}

struct AddRow<'a, S> {
    codes: &'a [i8],
    step: usize,
    totals: &'a mut [S],
}

impl<S: Sum> Vectorized for AddRow<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        if self.step == 1 {
            for (total, &code) in self.totals.iter_mut().zip(self.codes) {
                *total = total.plus(i32::from(code).into());
            }
        } else {
            for (i, total) in self.totals.iter_mut().enumerate() {
                *total = total.plus(i32::from(self.codes[i * self.step]).into());
            }
        }
    }
}

/// Some outputs of one group of one example.
struct Unfold<'a> {
    job: &'a Job<'a>,
    x: CodeView<'a, 4>,
    /// Example and first input channel.
    at: [usize; 2],
    kernel: [usize; 2],
    /// First output, in C order of height and width, and how many.
    first: usize,
    len: usize,
    /// Stands for padding.
    fill: i8,
}

/// Neighbouring outputs of one row under one element of the window.
enum Stretch {
    /// The input from `y`, `x` on, a stride apart.
    Inside { y: usize, x: usize },
    /// Padding.
    Outside,
}

impl Unfold<'_> {
    /// Writes the products of the filter's terms `terms` with the columns. `[channels, len]`
    fn multiply(
        &self,
        product: &Product,
        filter: &PackedLeft,
        terms: Range<usize>,
        out: &mut [i32],
    ) {
        if let Some(columns) = self.columns_in_place(terms.clone()) {
            return product.multiply_packed(filter, columns, out);
        }
        let mut columns = Buffer::<i8>::take(terms.len() * self.len);
        let window = self.kernel[0] * self.kernel[1];
        for (row, term) in columns.chunks_exact_mut(self.len).zip(terms.clone()) {
            self.unfold(term / window, term % window, row);
        }
        let columns = CodeView::new(&columns, [terms.len(), self.len])
            .expect("the buffer was taken for this shape");
        product.multiply_packed(filter, columns, out);
    }

    /// The columns, where they are the input itself.
    fn columns_in_place(&self, terms: Range<usize>) -> Option<CodeView<'_, 2>> {
        let ([_, _, height, width], [_, channel, row, column]) = (self.x.shape(), self.x.strides());
        let rows_join = height == 1 || row == width * column;
        if !self.job.window.is_identity(self.kernel) || !rows_join {
            return None;
        }
        let [n, first] = self.at;
        let start = self.x.at([n, first + terms.start, 0, 0]) + self.first * column;
        let codes = &self.x.memory()[start..];
        CodeView::strided(codes, [terms.len(), self.len], [channel, column]).ok()
    }

    /// Writes the codes of one channel under one element of the window.
    fn unfold(&self, channel: usize, tap: usize, row: &mut [i8]) {
        let [n, first] = self.at;
        let step = self.job.window.stride[1] * self.x.strides()[3];
        self.stretches(tap, |range, stretch| {
            let row = &mut row[range];
            match stretch {
                Stretch::Outside => row.fill(self.fill),
                Stretch::Inside { y, x } => {
                    let codes = &self.x.memory()[self.x.at([n, first + channel, y, x])..];
                    if step == 1 {
                        row.copy_from_slice(&codes[..row.len()]);
                    } else {
                        for (i, code) in row.iter_mut().enumerate() {
                            *code = codes[i * step];
                        }
                    }
                }
            }
        });
    }

    /// Adds up what lies under the window, from sums over the channels (`[height, width]`).
    fn window_totals<S: Sum>(&self, totals: &[S], under: &mut [S]) {
        let width = self.x.shape()[3];
        let step = self.job.window.stride[1];
        for tap in 0..self.kernel[0] * self.kernel[1] {
            self.stretches(tap, |range, stretch| {
                if let Stretch::Inside { y, x } = stretch {
                    let totals = totals[y * width + x..].iter().step_by(step);
                    for (under, &total) in under[range].iter_mut().zip(totals) {
                        *under = under.plus(total);
                    }
                }
            });
        }
    }

    /// Calls `f` for each element of the window and range of outputs where it lies on padding.
    fn outside(&self, mut f: impl FnMut(usize, Range<usize>)) {
        for tap in 0..self.kernel[0] * self.kernel[1] {
            self.stretches(tap, |range, stretch| {
                if let Stretch::Outside = stretch {
                    f(tap, range);
                }
            });
        }
    }

    /// Cuts the outputs into stretches that lie inside or outside under one element of the window.
    fn stretches(&self, tap: usize, mut f: impl FnMut(Range<usize>, Stretch)) {
        let (job, window) = (self.job, &self.job.window);
        let [out_height, out_width] = job.out_size;
        let [_, _, height, width] = self.x.shape();
        let (ky, kx) = (tap / self.kernel[1], tap % self.kernel[1]);
        let rows = window.inside(0, ky, height, out_height);
        let columns = window.inside(1, kx, width, out_width);
        let mut at = 0;
        while at < self.len {
            let (oy, first) = ((self.first + at) / out_width, (self.first + at) % out_width);
            let end = out_width.min(first + self.len - at);
            let (start, stop) = if rows.contains(&oy) {
                (columns.start.clamp(first, end), columns.end.clamp(first, end))
            } else {
                (end, end)
            };
            let range = |from: usize, to: usize| at + from - first..at + to - first;
            if start > first {
                f(range(first, start), Stretch::Outside);
            }
            if stop > start {
                let (y, x) = (window.input(0, ky, oy), window.input(1, kx, start));
                f(range(start, stop), Stretch::Inside { y, x });
            }
            if end > stop.max(start) {
                f(range(stop.max(start), end), Stretch::Outside);
            }
            at += end - first;
        }
    }
}

/// What is needed of an output channel to finish its sums.
struct Channel<S> {
    /// `o_x·Σ u` with `u = q_w - lowest`.
    constant: S,
    /// `o_w + lowest`.
    zero: S,
    scale: f32,
    bias: Option<f32>,
}

impl<S: Sum> Channel<S> {
    fn new(job: &Job<'_>, filter: &PackedFilter, channel: usize) -> Self {
        let [_, depth, height, width] = filter.shape();
        let lowest = filter.lowest();
        let sum =
            filter.taps(channel).iter().sum::<i64>() - lowest * (depth * height * width) as i64;
        Channel {
            constant: S::of(job.x.offset(0).wrapping_mul(sum)),
            zero: S::of(job.filter.offset(channel) + lowest),
            scale: job.scale(channel),
            bias: job.bias.map(|bias| bias[channel]),
        }
    }
}

/// Writes `s·Σ (q_x + o_x)(q_w + o_w) + bias` for the channels of a chunk.
///
/// With `u = q_w - lowest`, the sum is `Σ u·q_x + o_x·Σ u + (o_w + lowest)·Σ (q_x + o_x)`, if what
/// stands for padding has `q_x + o_x = 0`.
struct Finish<'a, 'o, R, S> {
    /// `Σ u·q_x`. `[channels, len]`
    raw: &'a [R],
    /// `Σ (q_x + o_x)` under the window. `[len]`
    under: &'a [S],
    channels: &'a [Channel<S>],
    out: Vec<&'o mut [f32]>,
}

impl<R: Copy + Into<S>, S: Sum> Vectorized for Finish<'_, '_, R, S> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let rows = self.raw.chunks_exact(self.under.len()).zip(self.channels);
        for (out, (raw, channel)) in self.out.into_iter().zip(rows) {
            for ((out, &raw), &under) in out.iter_mut().zip(raw).zip(self.under) {
                let sum = raw.into().plus(channel.constant).plus(channel.zero.times(under));
                *out = sum.to_f32() * channel.scale;
            }
            if let Some(bias) = channel.bias {
                out.iter_mut().for_each(|out| *out += bias);
            }
        }
    }
}
