//! The layout in which every tap reads consecutive elements.
//!
//! Along one axis, output position `o` and tap `t` meet at padded position `o · stride + t · dilation`. Split that
//! position into its *phase* (the remainder by the stride) and the rest: `(o + shift) · stride + phase`, where `shift`
//! and `phase` belong to the tap alone. So the padded input is cut into one plane per phase in use, each a grid of
//! `output + max(shift)` positions, and tap `t` of output position `o` is element `o + shift` of its plane. Over several
//! axes the same holds of flat positions, because all planes have the row length of the grid: output positions are
//! numbered on the grid, and those in its last columns belong to no output and are dropped on the way out.

use rayon::prelude::*;

use super::ConvShape;
use super::product::Store;
use crate::lanes::Real;

/// Where taps and outputs lie.
pub(super) struct Grid {
    /// Positions along each axis.
    pub(super) size: [usize; 3],
    /// Elements from one plane to the next.
    pub(super) plane: usize,
    /// Remainders along each axis, one entry per plane of a channel.
    pub(super) phases: Vec<[usize; 3]>,
    /// The taps in the order of the weight.
    pub(super) taps: Vec<Tap>,
    /// One more than the flat position of the last output.
    pub(super) positions: usize,
}

/// Where one tap reads.
pub(super) struct Tap {
    /// The plane, among those of a channel.
    pub(super) phase: usize,
    /// The flat position that it reads for output position 0.
    pub(super) shift: usize,
}

impl Grid {
    pub(super) fn new(shape: &ConvShape) -> Self {
        let ConvShape { output, kernel, stride, dilation, .. } = shape;
        let shift = |axis: usize, tap: usize| tap * dilation[axis] / stride[axis];
        let size: [usize; 3] =
            std::array::from_fn(|axis| output[axis] + shift(axis, kernel[axis] - 1));
        let flat = |at: [usize; 3]| (at[0] * size[1] + at[1]) * size[2] + at[2];
        let mut phases: Vec<[usize; 3]> = Vec::new();
        let mut taps = Vec::new();
        for d in 0..kernel[0] {
            for h in 0..kernel[1] {
                for w in 0..kernel[2] {
                    let tap = [d, h, w];
                    let remainders =
                        std::array::from_fn(|axis| tap[axis] * dilation[axis] % stride[axis]);
                    let known = phases.iter().position(|phase| *phase == remainders);
                    let phase = known.unwrap_or_else(|| {
                        phases.push(remainders);
                        phases.len() - 1
                    });
                    taps.push(Tap {
                        phase,
                        shift: flat(std::array::from_fn(|axis| shift(axis, tap[axis]))),
                    });
                }
            }
        }
        Self {
            size,
            plane: pitch(size.iter().product()),
            phases,
            taps,
            positions: flat(output.map(|n| n - 1)) + 1,
        }
    }

    /// Positions of one plane.
    pub(super) fn extent(&self) -> usize {
        self.size.iter().product()
    }

    /// The largest shift of a tap.
    pub(super) fn max_shift(&self) -> usize {
        self.taps.iter().map(|tap| tap.shift).max().unwrap_or(0)
    }

    /// Whether input and output are grids as they stand.
    pub(super) fn reads_in_place(&self, shape: &ConvShape) -> bool {
        shape.is_pointwise() && (shape.group_channels().0 < 16 || !collides(self.extent()))
    }

    /// Whether every position of the input belongs to a position of some phase.
    pub(super) fn covers_input(&self, shape: &ConvShape) -> bool {
        let all_phases = self.phases.len() == shape.stride.iter().product();
        all_phases
            && (0..3).all(|axis| {
                self.size[axis] * shape.stride[axis] >= shape.padding[axis] + shape.input[axis]
            })
    }

    /// Where positions go in an output plane.
    pub(super) fn output_store(&self, shape: &ConvShape) -> Store {
        let [depth, height, width] = shape.output;
        let rows = self.rows(|d, h| (d < depth && h < height).then(|| (d * height + h) * width));
        Store {
            pitch: self.size[2],
            rows,
            columns: 0..width,
            stride: 1,
            plane: depth * height * width,
        }
    }

    /// Where positions of the plane of a phase go in an input plane.
    pub(super) fn input_store(&self, shape: &ConvShape, phase: usize) -> Store {
        let [depth, height, width] = shape.input;
        let phase = self.phases[phase];
        let columns = self.inside(shape, 2, phase[2]);
        let first = (columns.start * shape.stride[2] + phase[2]).saturating_sub(shape.padding[2]);
        let rows = self.rows(|d, h| {
            let d = place(shape, 0, phase[0], d)?;
            let h = place(shape, 1, phase[1], h)?;
            Some((d * height + h) * width + first)
        });
        Store {
            pitch: self.size[2],
            rows,
            columns,
            stride: shape.stride[2],
            plane: depth * height * width,
        }
    }

    fn rows(&self, start: impl Fn(usize, usize) -> Option<usize>) -> Vec<Option<usize>> {
        let [depth, height, _] = self.size;
        (0..depth)
            .flat_map(|d| (0..height).map(move |h| (d, h)))
            .map(|(d, h)| start(d, h))
            .collect()
    }

    /// The grid positions of a phase that lie inside the input, along one axis.
    fn inside(&self, shape: &ConvShape, axis: usize, phase: usize) -> std::ops::Range<usize> {
        let stride = shape.stride[axis];
        let first =
            |position: usize| position.saturating_sub(phase).div_ceil(stride).min(self.size[axis]);
        first(shape.padding[axis])..first(shape.padding[axis] + shape.input[axis])
    }

    /// Lays out the channels of one group of one image: `[channel][phase][plane]`.
    pub(super) fn lay_out_input<T: Real>(
        &self,
        shape: &ConvShape,
        x: &[T],
        scratch: &mut Vec<T>,
        parallel: bool,
    ) {
        let channel = shape.input.iter().product();
        let columns: Vec<_> =
            self.phases.iter().map(|phase| self.inside(shape, 2, phase[2])).collect();
        let fill = |channel: &[T], planes: &mut [T]| {
            for (plane, (phase, columns)) in
                planes.chunks_mut(self.plane).zip(self.phases.iter().zip(&columns))
            {
                let (rows, rest) = plane.split_at_mut(self.extent());
                rest.fill(T::default());
                for (row, out) in rows.chunks_mut(self.size[2]).enumerate() {
                    let d = place(shape, 0, phase[0], row / self.size[1]);
                    let h = place(shape, 1, phase[1], row % self.size[1]);
                    let (Some((d, h)), false) = (d.zip(h), columns.is_empty()) else {
                        out.fill(T::default());
                        continue;
                    };
                    let stride = shape.stride[2];
                    let first = columns.start * stride + phase[2] - shape.padding[2];
                    let x = &channel[(d * shape.input[1] + h) * shape.input[2] + first..];
                    out[..columns.start].fill(T::default());
                    out[columns.end..].fill(T::default());
                    let out = &mut out[columns.clone()];
                    if stride == 1 {
                        out.copy_from_slice(&x[..out.len()]);
                    } else {
                        for (out, x) in out.iter_mut().zip(x.iter().step_by(stride)) {
                            *out = *x;
                        }
                    }
                }
            }
        };
        each_channel(x, channel, scratch, self.phases.len() * self.plane, parallel, fill);
    }

    /// Lays out the outputs of one group of one image on the grid, zero where no output is, behind `front` zeros:
    /// `[channel][plane]`.
    pub(super) fn lay_out_output<T: Real>(
        &self,
        shape: &ConvShape,
        y: &[T],
        front: usize,
        plane: usize,
        scratch: &mut Vec<T>,
        parallel: bool,
    ) {
        let channel = shape.output.iter().product();
        let store = self.output_store(shape);
        let fill = |y: &[T], plane: &mut [T]| {
            plane.fill(T::default());
            for (row, start) in store.rows.iter().enumerate() {
                if let Some(start) = start {
                    let width = store.columns.end;
                    plane[front + row * store.pitch..][..width]
                        .copy_from_slice(&y[*start..][..width]);
                }
            }
        };
        each_channel(y, channel, scratch, plane, parallel, fill);
    }
}

impl Grid {
    /// Lays out the outputs of one group of one image in panels of `width` channels with the channels of a position side
    /// by side, zero where no output is: `[panel][position][channel]`.
    pub(super) fn lay_out_panels<T: Real>(
        &self,
        shape: &ConvShape,
        y: &[T],
        width: usize,
        scratch: &mut Vec<T>,
        parallel: bool,
    ) {
        let plane: usize = shape.output.iter().product();
        let store = self.output_store(shape);
        let panels = (y.len() / plane).div_ceil(width);
        scratch.resize(panels * self.extent() * width, T::default());
        let fill = |row: usize, out: &mut [T]| {
            let (panel, row) = (row / store.rows.len(), row % store.rows.len());
            let Some(start) = store.rows[row] else {
                out.fill(T::default());
                return;
            };
            let first = panel * width * plane;
            let last = (first + width * plane).min(y.len());
            let (out, rest) = out.split_at_mut(store.columns.end * width);
            rest.fill(T::default());
            for (column, out) in out.chunks_exact_mut(width).enumerate() {
                let values = y[first..last].iter().skip(start + column).step_by(plane);
                let live = (last - first) / plane;
                for (out, y) in out.iter_mut().zip(values) {
                    *out = *y;
                }
                out[live..].fill(T::default());
            }
        };
        let row = store.pitch * width;
        if parallel {
            scratch.par_chunks_mut(row).enumerate().for_each(|(i, out)| fill(i, out));
        } else {
            scratch.chunks_mut(row).enumerate().for_each(|(i, out)| fill(i, out));
        }
    }
}

/// Where a grid position of a phase lies in the input.
fn place(shape: &ConvShape, axis: usize, phase: usize, position: usize) -> Option<usize> {
    (position * shape.stride[axis] + phase)
        .checked_sub(shape.padding[axis])
        .filter(|place| *place < shape.input[axis])
}

/// Fills the planes of each channel; afterwards `scratch` holds those, and nothing else.
fn each_channel<T: Real>(
    x: &[T],
    channel: usize,
    scratch: &mut Vec<T>,
    planes: usize,
    parallel: bool,
    fill: impl Fn(&[T], &mut [T]) + Sync,
) {
    let channels = x.len() / channel;
    scratch.resize(channels * planes, T::default());
    if parallel {
        scratch.par_chunks_mut(planes).zip(x.par_chunks(channel)).for_each(|(out, x)| fill(x, out));
    } else {
        for (out, x) in scratch.chunks_mut(planes).zip(x.chunks(channel)) {
            fill(x, out);
        }
    }
}

/// Elements from one plane of `extent` elements to the next, such that planes do not share their cache lines' places.
pub(super) fn pitch(extent: usize) -> usize {
    let pitch = extent.next_multiple_of(16);
    if collides(pitch) { pitch + 16 } else { pitch }
}

/// Whether the same element of many planes this far apart falls into few sets of the first cache.
fn collides(pitch: usize) -> bool {
    pitch.is_multiple_of(256)
}
