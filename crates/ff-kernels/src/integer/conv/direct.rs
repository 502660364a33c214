//! Convolution element by element, for groups of few output channels (depthwise).

use rayon::prelude::*;

use super::{Job, PackedFilter};
use crate::integer::buffer::Buffer;
use crate::integer::finish::Sum;
use crate::integer::view::CodeView;
use crate::simd::{Vectorized, dispatch};

/// Computes the planes of all output channels side by side.
pub(super) fn run<S: Sum>(
    job: &Job<'_>,
    x: CodeView<'_, 4>,
    (filter, codes): (&PackedFilter, &[i8]),
    out: &mut [f32],
) {
    let [n_out, depth, height, width] = filter.shape();
    let terms = depth * height * width;
    let per_group = n_out / filter.groups();
    out.par_chunks_mut(job.out_size[0] * job.out_size[1]).enumerate().for_each(|(plane, out)| {
        let (n, channel) = (plane / n_out, plane % n_out);
        let first = channel / per_group * depth;
        let codes = &codes[channel * terms..][..terms];
        dispatch(Plane::<S> {
            job,
            x,
            at: [n, first],
            kernel: [depth, height, width],
            codes,
            zeros: [S::of(job.x.offset(0)), S::of(job.filter.offset(channel))],
            scale: job.scale(channel),
            bias: job.bias.map(|bias| bias[channel]),
            out,
        });
    });
}

/// One output channel of one example.
struct Plane<'a, S> {
    job: &'a Job<'a>,
    x: CodeView<'a, 4>,
    /// Example and first input channel.
    at: [usize; 2],
    kernel: [usize; 3],
    codes: &'a [i8],
    /// Offsets of input and filter.
    zeros: [S; 2],
    scale: f32,
    bias: Option<f32>,
    out: &'a mut [f32],
}

impl<S: Sum> Vectorized for Plane<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Plane { job, x, at: [n, first], kernel, codes, zeros, .. } = self;
        let ([depth, kernel_height, kernel_width], window) = (kernel, &job.window);
        let [out_height, out_width] = job.out_size;
        let [_, _, height, width] = x.shape();
        let step = window.stride[1] * x.strides()[3];
        let memory = x.memory();
        let mut sums = Buffer::<S>::take(out_width);
        for (oy, out) in self.out.chunks_exact_mut(out_width).enumerate() {
            sums.fill(S::default());
            for ky in 0..kernel_height {
                if !window.inside(0, ky, height, out_height).contains(&oy) {
                    continue;
                }
                let y = window.input(0, ky, oy);
                for kx in 0..kernel_width {
                    let inside = window.inside(1, kx, width, out_width);
                    if inside.is_empty() {
                        continue;
                    }
                    let x_at = window.input(1, kx, inside.start);
                    for c in 0..depth {
                        let code = codes[(c * kernel_height + ky) * kernel_width + kx];
                        let code = S::from(i32::from(code)).plus(zeros[1]);
                        let start = x.at([n, first + c, y, x_at]);
                        let sums = &mut sums[inside.clone()];
                        if step == 1 {
                            for (sum, &q) in sums.iter_mut().zip(&memory[start..]) {
                                *sum = sum.plus(S::from(i32::from(q)).plus(zeros[0]).times(code));
                            }
                        } else {
                            for (i, sum) in sums.iter_mut().enumerate() {
                                let q = memory[start + i * step];
                                *sum = sum.plus(S::from(i32::from(q)).plus(zeros[0]).times(code));
                            }
                        }
                    }
                }
            }
            for (out, sum) in out.iter_mut().zip(sums.iter()) {
                *out = sum.to_f32() * self.scale;
            }
            if let Some(bias) = self.bias {
                out.iter_mut().for_each(|out| *out += bias);
            }
        }
    }
}
