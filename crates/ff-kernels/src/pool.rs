//! Pooling: averages and maxima over windows, and their gradients.

use std::ops::Range;

use rayon::prelude::*;

use crate::error::{KernelError, KernelErrorKind};
use crate::lanes::Real;
use crate::simd::{Vectorized, dispatch};

/// The sizes of an average over windows of up to three axes, fewer having leading axes of size 1.
///
/// The windows of an output position are the product of one [`Window`] per axis, so that pooling with any padding,
/// adaptive pooling and resizing by area are the same thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AveragePool {
    /// Batch and channels.
    pub planes: usize,
    /// Extents of a plane of the input.
    pub input: [usize; 3],
    /// One window per output position, for each axis.
    pub windows: [Vec<Window>; 3],
}

/// What an output position averages along one axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The input positions that are summed.
    pub span: Range<usize>,
    /// What this axis contributes to the divisor: the length of the span, or more where padding counts.
    pub count: usize,
}

/// The sizes of a maximum over windows of two axes.
///
/// Output position `o` and tap `t` of an axis meet at input position `o · stride + t · dilation - padding`; taps outside
/// the input do not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaxPool {
    /// Batch and channels.
    pub planes: usize,
    /// Extents of a plane of the input.
    pub input: [usize; 2],
    /// Extents of a plane of the output.
    pub output: [usize; 2],
    /// Taps along each axis.
    pub kernel: [usize; 2],
    /// Input positions from one output position to the next.
    pub stride: [usize; 2],
    /// Input positions from one tap to the next.
    pub dilation: [usize; 2],
    /// Input positions that the first tap lies before the input.
    pub padding: [usize; 2],
}

/// Averages: `out[plane, o] = Σ_{i in window(o)} x[plane, i] / Π count`.
///
/// # Errors
///
/// A slice has another length than the sizes say, or a window reaches out of the input.
pub fn average_pool<T: Real>(
    pool: &AveragePool,
    x: &[T],
    out: &mut [T],
) -> Result<(), KernelError> {
    let (input, output) = pool.check(x.len(), out.len())?;
    if out.is_empty() {
        return Ok(());
    }
    if input == 0 {
        out.fill(T::default());
        return Ok(());
    }
    planes(out, output, x, input, &|out, x| dispatch(AverageJob { pool, x, out }));
    Ok(())
}

/// The gradient of [`average_pool`] by its input: every window receives its share of the output's gradient.
///
/// # Errors
///
/// As [`average_pool`].
pub fn average_pool_gradient<T: Real>(
    pool: &AveragePool,
    grad: &[T],
    x_grad: &mut [T],
) -> Result<(), KernelError> {
    let (input, output) = pool.check(x_grad.len(), grad.len())?;
    x_grad.fill(T::default());
    if x_grad.is_empty() || output == 0 {
        return Ok(());
    }
    planes(x_grad, input, grad, output, &|x_grad, grad| dispatch(SpreadJob { pool, grad, x_grad }));
    Ok(())
}

/// Maxima; a NaN in a window is its maximum, and a window without a tap inside the input has `-inf`.
///
/// # Errors
///
/// A slice has another length than the sizes say, or a stride is zero.
pub fn max_pool<T: Real>(pool: &MaxPool, x: &[T], out: &mut [T]) -> Result<(), KernelError> {
    let (input, output) = pool.check(x.len(), out.len())?;
    if out.is_empty() {
        return Ok(());
    }
    if input == 0 {
        out.fill(T::LOWEST);
        return Ok(());
    }
    planes(out, output, x, input, &|out, x| dispatch(MaxJob { pool, x, out }));
    Ok(())
}

/// The gradient of [`max_pool`] by its input `x`: the first maximum of a window receives all of the output's gradient,
/// or its last NaN if there is one.
///
/// # Errors
///
/// As [`max_pool`].
pub fn max_pool_gradient<T: Real>(
    pool: &MaxPool,
    x: &[T],
    grad: &[T],
    x_grad: &mut [T],
) -> Result<(), KernelError> {
    let (input, output) = pool.check(x.len(), grad.len())?;
    length("gradient", x.len(), x_grad.len())?;
    x_grad.fill(T::default());
    if x_grad.is_empty() || output == 0 {
        return Ok(());
    }
    let work = |x_grad: &mut [T], x: &[T], grad: &[T]| {
        for ((x_grad, x), grad) in
            x_grad.chunks_mut(input).zip(x.chunks(input)).zip(grad.chunks(output))
        {
            pool.send_back(x, grad, x_grad);
        }
    };
    let each = planes_each(pool.planes, input + output);
    if each < pool.planes {
        x_grad
            .par_chunks_mut(each * input)
            .zip(x.par_chunks(each * input).zip(grad.par_chunks(each * output)))
            .for_each(|(x_grad, (x, grad))| work(x_grad, x, grad));
    } else {
        work(x_grad, x, grad);
    }
    Ok(())
}

impl AveragePool {
    /// Checks the sizes; returns the elements of a plane of input and output.
    fn check(&self, x: usize, out: usize) -> Result<(usize, usize), KernelError> {
        for (windows, size) in self.windows.iter().zip(self.input) {
            for Window { span, count } in windows {
                if span.end > size {
                    return Err(
                        KernelErrorKind::OutOfBounds { needed: span.end, found: size }.into()
                    );
                }
                if *count == 0 {
                    return Err(option("count", "positive"));
                }
            }
        }
        let input = size(self.planes, &self.input)?;
        let output = self.windows.each_ref().map(Vec::len);
        length("input", input, x)?;
        length("output", size(self.planes, &output)?, out)?;
        Ok((self.input.iter().product(), output.iter().product()))
    }

    /// Calls `visit` for each row of the output: the rows of the input that it averages, and their part of the divisor.
    #[inline(always)]
    fn rows(&self, mut visit: impl FnMut(&Window, &Window)) {
        for d in &self.windows[0] {
            for h in &self.windows[1] {
                visit(d, h);
            }
        }
    }
}

struct AverageJob<'a, T> {
    pool: &'a AveragePool,
    x: &'a [T],
    out: &'a mut [T],
}

impl<T: Real> Vectorized for AverageJob<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { pool, x, out } = self;
        let [_, height, width] = pool.input;
        let columns = &pool.windows[2];
        let mut sums = vec![T::default(); width];
        let mut out = out.chunks_mut(columns.len());
        for x in x.chunks(pool.input.iter().product()) {
            pool.rows(
                #[inline(always)]
                |d, h| {
                    sums.fill(T::default());
                    for d in d.span.clone() {
                        for h in h.span.clone() {
                            let row = &x[(d * height + h) * width..][..width];
                            for (sum, x) in sums.iter_mut().zip(row) {
                                *sum += *x;
                            }
                        }
                    }
                    let rows = d.count * h.count;
                    let out = out.next().expect("one row per pair of windows");
                    for (out, w) in out.iter_mut().zip(columns) {
                        let mut sum = T::default();
                        for x in &sums[w.span.clone()] {
                            sum += *x;
                        }
                        *out = sum.over(rows * w.count);
                    }
                },
            );
        }
    }
}

struct SpreadJob<'a, T> {
    pool: &'a AveragePool,
    grad: &'a [T],
    x_grad: &'a mut [T],
}

impl<T: Real> Vectorized for SpreadJob<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { pool, grad, x_grad } = self;
        let [_, height, width] = pool.input;
        let columns = &pool.windows[2];
        let mut shares = vec![T::default(); width];
        let mut grad = grad.chunks(columns.len());
        for x_grad in x_grad.chunks_mut(pool.input.iter().product()) {
            pool.rows(
                #[inline(always)]
                |d, h| {
                    shares.fill(T::default());
                    let rows = d.count * h.count;
                    let grad = grad.next().expect("one row per pair of windows");
                    for (grad, w) in grad.iter().zip(columns) {
                        let share = grad.over(rows * w.count);
                        for sum in &mut shares[w.span.clone()] {
                            *sum += share;
                        }
                    }
                    for d in d.span.clone() {
                        for h in h.span.clone() {
                            let row = &mut x_grad[(d * height + h) * width..][..width];
                            for (x_grad, share) in row.iter_mut().zip(&shares) {
                                *x_grad += *share;
                            }
                        }
                    }
                },
            );
        }
    }
}

impl MaxPool {
    /// Checks the sizes; returns the elements of a plane of input and output.
    fn check(&self, x: usize, out: usize) -> Result<(usize, usize), KernelError> {
        if self.stride.contains(&0) {
            return Err(option("stride", "positive"));
        }
        for axis in 0..2 {
            let last = self.output[axis]
                .checked_mul(self.stride[axis])
                .zip(self.kernel[axis].checked_mul(self.dilation[axis]))
                .and_then(|(a, b)| a.checked_add(b)?.checked_add(self.padding[axis]));
            if last.is_none() {
                return Err(KernelErrorKind::TooLarge { shape: self.output.to_vec() }.into());
            }
        }
        length("input", size(self.planes, &self.input)?, x)?;
        length("output", size(self.planes, &self.output)?, out)?;
        Ok((self.input.iter().product(), self.output.iter().product()))
    }

    /// The taps of a row of the output that lie in rows of the input: those rows.
    #[inline(always)]
    fn tap_rows(&self, row: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.kernel[0]).filter_map(move |tap| {
            let place = row * self.stride[0] + tap * self.dilation[0];
            place.checked_sub(self.padding[0]).filter(|place| *place < self.input[0])
        })
    }

    /// The output columns for which a tap lies in the input, and the input column of the first.
    #[inline(always)]
    fn tap_columns(&self, tap: usize) -> (Range<usize>, usize) {
        let (stride, padding) = (self.stride[1], self.padding[1]);
        let reach = tap * self.dilation[1];
        let first = |place: usize| place.saturating_sub(reach).div_ceil(stride).min(self.output[1]);
        let columns = first(padding)..first(padding + self.input[1]);
        let start = (columns.start * stride + reach).saturating_sub(padding);
        (columns, start)
    }

    fn send_back<T: Real>(&self, x: &[T], grad: &[T], x_grad: &mut [T]) {
        let width = self.input[1];
        let mut best = vec![(T::LOWEST, None); self.output[1]];
        for (row, grad) in grad.chunks(self.output[1]).enumerate() {
            best.fill((T::LOWEST, None));
            for h in self.tap_rows(row) {
                for tap in 0..self.kernel[1] {
                    let (columns, start) = self.tap_columns(tap);
                    if columns.is_empty() {
                        continue;
                    }
                    let places = (h * width + start..).step_by(self.stride[1]);
                    for ((best, at), place) in best[columns].iter_mut().zip(places) {
                        let value = x[place];
                        if at.is_none() || value > *best || value.is_nan() {
                            (*best, *at) = (value, Some(place));
                        }
                    }
                }
            }
            for ((_, at), grad) in best.iter().zip(grad) {
                if let Some(at) = at {
                    x_grad[*at] += *grad;
                }
            }
        }
    }
}

struct MaxJob<'a, T> {
    pool: &'a MaxPool,
    x: &'a [T],
    out: &'a mut [T],
}

impl<T: Real> Vectorized for MaxJob<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { pool, x, out } = self;
        let width = pool.input[1];
        let planes = x.chunks(pool.input.iter().product());
        for (x, out) in planes.zip(out.chunks_mut(pool.output.iter().product())) {
            for (row, out) in out.chunks_mut(pool.output[1]).enumerate() {
                out.fill(T::LOWEST);
                for h in pool.tap_rows(row) {
                    let x = &x[h * width..][..width];
                    for tap in 0..pool.kernel[1] {
                        let (columns, start) = pool.tap_columns(tap);
                        if columns.is_empty() {
                            continue;
                        }
                        let out = &mut out[columns];
                        match pool.stride[1] {
                            1 => raise(out, x[start..].iter()),
                            2 => raise(out, x[start..].iter().step_by(2)),
                            stride => raise(out, x[start..].iter().step_by(stride)),
                        }
                    }
                }
            }
        }
    }
}

/// Keeps the larger of each pair, or a NaN.
#[inline(always)]
fn raise<'a, T: Real>(out: &mut [T], x: impl Iterator<Item = &'a T>) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = if *x > *out || x.is_nan() { *x } else { *out };
    }
}

/// Fewer elements than this are not worth another thread.
const MIN_PARALLEL: usize = 1 << 16;

/// How many planes one thread takes at once.
fn planes_each(planes: usize, elements: usize) -> usize {
    if planes.saturating_mul(elements) < MIN_PARALLEL {
        return planes;
    }
    (MIN_PARALLEL / 4).div_ceil(elements.max(1)).min(planes)
}

/// Does some planes of `out` from the same planes of `x`; neither plane is empty.
fn planes<T: Real>(
    out: &mut [T],
    out_plane: usize,
    x: &[T],
    x_plane: usize,
    work: &(dyn Fn(&mut [T], &[T]) + Sync),
) {
    let count = out.len() / out_plane;
    let each = planes_each(count, out_plane + x_plane);
    if each < count {
        out.par_chunks_mut(each * out_plane)
            .zip(x.par_chunks(each * x_plane))
            .for_each(|(out, x)| work(out, x));
    } else {
        work(out, x);
    }
}

fn size(planes: usize, axes: &[usize]) -> Result<usize, KernelError> {
    axes.iter()
        .try_fold(planes, |size, n| size.checked_mul(*n))
        .ok_or_else(|| KernelErrorKind::TooLarge { shape: [&[planes], axes].concat() }.into())
}

fn length(what: &'static str, expected: usize, found: usize) -> Result<(), KernelError> {
    if expected == found {
        return Ok(());
    }
    Err(KernelErrorKind::Length { what, expected, found }.into())
}

fn option(what: &'static str, must_be: &'static str) -> KernelError {
    KernelErrorKind::Option { what, must_be, found: 0.0 }.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + 3) % 13) as f32 - 6.0).collect()
    }

    fn windows() -> impl Strategy<Value = (usize, Vec<Window>)> {
        (1usize..7).prop_flat_map(|size| {
            let window = (0..size, 1..=size, 0usize..3).prop_map(move |(start, len, more)| {
                let span = start..(start + len).min(size);
                // Powers of two, so that any order of divisions is exact.
                Window { count: (span.len() + more).next_power_of_two(), span }
            });
            (Just(size), proptest::collection::vec(window, 1..6))
        })
    }

    proptest! {
        #[test]
        fn averages_are_their_definition(planes in 1usize..4, d in windows(), h in windows(), w in windows()) {
            let input = [d.0, h.0, w.0];
            let windows = [d.1, h.1, w.1];
            let [od, oh, ow] = windows.each_ref().map(Vec::len);
            let pool = AveragePool { planes, input, windows };
            let x = values(planes * input.iter().product::<usize>());
            let grad = values(planes * od * oh * ow);
            let mut expected = vec![0.0; grad.len()];
            let mut expected_grad = vec![0.0; x.len()];
            for (o, expected) in expected.iter_mut().enumerate() {
                let [d, h, w] = [o / ow / oh % od, o / ow % oh, o % ow];
                let [d, h, w] = [&pool.windows[0][d], &pool.windows[1][h], &pool.windows[2][w]];
                let count = (d.count * h.count * w.count) as f32;
                for d in d.span.clone() { for h in h.span.clone() { for w in w.span.clone() {
                    let i = ((o / (od * oh * ow) * input[0] + d) * input[1] + h) * input[2] + w;
                    *expected += x[i] / count;
                    expected_grad[i] += grad[o] / count;
                }}}
            }
            let mut out = vec![9.0; grad.len()];
            average_pool(&pool, &x, &mut out).unwrap();
            prop_assert_eq!(out, expected);
            let mut out = vec![9.0; x.len()];
            average_pool_gradient(&pool, &grad, &mut out).unwrap();
            prop_assert_eq!(out, expected_grad);
        }

        #[test]
        fn maxima_are_their_definition(
            planes in 1usize..4,
            input in [1usize..9, 1usize..9],
            output in [1usize..6, 1usize..6],
            kernel in [1usize..4, 1usize..4],
            stride in [1usize..4, 1usize..4],
            dilation in [1usize..3, 1usize..3],
            padding in [0usize..3, 0usize..3],
            nan in proptest::option::of(0usize..64),
        ) {
            let pool = MaxPool { planes, input, output, kernel, stride, dilation, padding };
            let mut x = values(planes * input[0] * input[1]);
            if let Some(nan) = nan {
                let n = x.len();
                x[nan % n] = f32::NAN;
            }
            let grad = values(planes * output[0] * output[1]);
            let mut expected = Vec::new();
            let mut expected_grad = vec![0.0; x.len()];
            for (o, grad) in grad.iter().enumerate() {
                let (plane, at) = (o / (output[0] * output[1]), [o / output[1] % output[0], o % output[1]]);
                let mut best: Option<(f32, usize)> = None;
                for t in 0..kernel[0] * kernel[1] {
                    let tap = [t / kernel[1], t % kernel[1]];
                    let place = [0, 1].map(|a| (at[a] * stride[a] + tap[a] * dilation[a]).wrapping_sub(padding[a]));
                    if place[0] >= input[0] || place[1] >= input[1] {
                        continue;
                    }
                    let i = (plane * input[0] + place[0]) * input[1] + place[1];
                    if best.is_none_or(|(best, _)| x[i] > best || x[i].is_nan()) {
                        best = Some((x[i], i));
                    }
                }
                expected.push(best.map_or(f32::NEG_INFINITY, |(best, _)| best));
                if let Some((_, i)) = best {
                    expected_grad[i] += grad;
                }
            }
            let mut out = vec![9.0; grad.len()];
            max_pool(&pool, &x, &mut out).unwrap();
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&out), bits(&expected));
            let mut out = vec![9.0; x.len()];
            max_pool_gradient(&pool, &x, &grad, &mut out).unwrap();
            prop_assert_eq!(bits(&out), bits(&expected_grad));
        }
    }

    #[test]
    fn many_planes_are_shared_among_threads() {
        let window = |start: usize| Window { span: start..start + 2, count: 2 };
        let windows = [
            vec![Window { span: 0..1, count: 1 }],
            vec![window(0), window(2)],
            vec![window(0), window(1)],
        ];
        let pool = AveragePool { planes: 9000, input: [1, 4, 3], windows };
        let x = values(9000 * 12);
        let mut out = vec![0.0; 9000 * 4];
        average_pool(&pool, &x, &mut out).unwrap();
        let one = AveragePool { planes: 1, ..pool };
        for (x, out) in x.chunks(12).zip(out.chunks(4)) {
            let mut expected = [0.0; 4];
            average_pool(&one, x, &mut expected).unwrap();
            assert_eq!(out, expected);
        }
        let two = [2; 2];
        let pool = MaxPool {
            planes: 9000,
            input: [4, 3],
            output: [2, 1],
            kernel: two,
            stride: two,
            dilation: [1; 2],
            padding: [0; 2],
        };
        let (mut out, mut grad) = (vec![0.0; 9000 * 2], vec![0.0; x.len()]);
        max_pool(&pool, &x, &mut out).unwrap();
        max_pool_gradient(&pool, &x, &out, &mut grad).unwrap();
        let one = MaxPool { planes: 1, ..pool };
        for ((x, out), grad) in x.chunks(12).zip(out.chunks(2)).zip(grad.chunks(12)) {
            let (mut expected, mut expected_grad) = ([0.0; 2], [0.0; 12]);
            max_pool(&one, x, &mut expected).unwrap();
            max_pool_gradient(&one, x, out, &mut expected_grad).unwrap();
            assert_eq!(out, expected);
            assert_eq!(grad, expected_grad);
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_errors() {
        let windows = [0, 1, 2].map(|_| vec![Window { span: 0..2, count: 2 }]);
        let pool = AveragePool { planes: 1, input: [2, 2, 1], windows };
        let error = average_pool(&pool, &[0.0f32; 4], &mut [0.0]).unwrap_err();
        assert!(matches!(error.kind(), KernelErrorKind::OutOfBounds { needed: 2, found: 1 }));
        let pool = AveragePool { input: [2, 2, 2], ..pool };
        assert!(average_pool(&pool, &[0.0f32; 4], &mut [0.0]).is_err());
        let one = [1; 2];
        let pool = MaxPool {
            planes: 1,
            input: one,
            output: one,
            kernel: one,
            stride: [0, 1],
            dilation: one,
            padding: [0; 2],
        };
        assert!(max_pool(&pool, &[0.0f32], &mut [0.0]).unwrap_err().to_string().contains("stride"));
    }
}
