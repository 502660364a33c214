//! Two operands and a result over broadcast axes.

use std::borrow::Cow;

use super::parallel::{fill_rows, map};
use super::real::Real;
use super::reduce::sum_middle;
use super::shape::Around;

/// How the elements of two dense operands meet, as a matrix: rows that know where they start in either operand, and
/// columns along which an operand goes on or stands still.
pub(super) struct Broadcast {
    a: Vec<usize>,
    b: Vec<usize>,
    out: Vec<usize>,
    /// Outer axes: size, stride in `a`, stride in `b`.
    rows: Vec<[usize; 3]>,
    n_rows: usize,
    n_columns: usize,
    a_moves: bool,
    b_moves: bool,
}

impl Broadcast {
    /// `out` must be the shape to which `a` and `b` broadcast.
    pub(super) fn new(a: &[usize], b: &[usize], out: &[usize]) -> Self {
        let rank = out.len();
        let strides = |dims: &[usize]| {
            let mut strides = vec![0; rank];
            let mut stride = 1;
            for (i, &dim) in dims.iter().enumerate().rev() {
                strides[rank - dims.len() + i] = if dim == 1 { 0 } else { stride };
                stride *= dim;
            }
            strides
        };
        let (a_strides, b_strides) = (strides(a), strides(b));
        // Neighbouring axes along which both operands go on evenly are one.
        let mut axes: Vec<[usize; 3]> = Vec::new();
        for i in (0..rank).filter(|&i| out[i] != 1) {
            let [n, s, t] = [out[i], a_strides[i], b_strides[i]];
            match axes.last_mut() {
                Some([outer, a, b]) if *a == s * n && *b == t * n => {
                    (*outer, *a, *b) = (*outer * n, s, t);
                }
                _ => axes.push([n, s, t]),
            }
        }
        let [n_columns, a_step, b_step] = axes.pop().unwrap_or([1, 0, 0]);
        Self {
            a: a.to_vec(),
            b: b.to_vec(),
            out: out.to_vec(),
            n_rows: axes.iter().map(|[n, ..]| n).product(),
            rows: axes,
            n_columns,
            a_moves: a_step != 0,
            b_moves: b_step != 0,
        }
    }

    /// Where a row starts in either operand.
    #[inline(always)]
    fn start(&self, mut row: usize) -> (usize, usize) {
        let (mut a, mut b) = (0, 0);
        for [n, s, t] in self.rows.iter().rev() {
            let i = row % n;
            row /= n;
            a += i * s;
            b += i * t;
        }
        (a, b)
    }

    /// `f(a, b)` for each element of the result.
    pub(super) fn zip<T: Real>(&self, a: &[T], b: &[T], f: impl Fn(T, T) -> T + Sync) -> Vec<T> {
        if self.a == self.b {
            return map(
                [a, b],
                #[inline(always)]
                |[a, b]| f(a, b),
            );
        }
        fill_rows(
            self.n_rows,
            self.n_columns,
            #[inline(always)]
            |row, out| {
                self.row(
                    row,
                    a,
                    b,
                    out,
                    #[inline(always)]
                    |_, a, b| f(a, b),
                )
            },
        )
    }

    /// `f(a, b, g)` for each element of the result, where `g` has the result's shape.
    pub(super) fn zip_with<T: Real>(
        &self,
        a: &[T],
        b: &[T],
        g: &[T],
        f: impl Fn(T, T, T) -> T + Sync,
    ) -> Vec<T> {
        if self.a == self.b {
            return map(
                [a, b, g],
                #[inline(always)]
                |[a, b, g]| f(a, b, g),
            );
        }
        let n = self.n_columns;
        fill_rows(
            self.n_rows,
            n,
            #[inline(always)]
            |row, out| {
                let g = &g[row * n..][..n];
                self.row(
                    row,
                    a,
                    b,
                    out,
                    #[inline(always)]
                    |i, a, b| f(a, b, g[i]),
                )
            },
        )
    }

    #[inline(always)]
    fn row<T: Real>(
        &self,
        row: usize,
        a: &[T],
        b: &[T],
        out: &mut [T],
        f: impl Fn(usize, T, T) -> T,
    ) {
        let n = self.n_columns;
        let (a_start, b_start) = self.start(row);
        let out = &mut out[..n];
        match (self.a_moves, self.b_moves) {
            (true, true) => {
                let (a, b) = (&a[a_start..][..n], &b[b_start..][..n]);
                for i in 0..n {
                    out[i] = f(i, a[i], b[i]);
                }
            }
            (true, false) => {
                let (a, b) = (&a[a_start..][..n], b[b_start]);
                for i in 0..n {
                    out[i] = f(i, a[i], b);
                }
            }
            (false, true) => {
                let (a, b) = (a[a_start], &b[b_start..][..n]);
                for i in 0..n {
                    out[i] = f(i, a, b[i]);
                }
            }
            (false, false) => {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = f(i, a[a_start], b[b_start]);
                }
            }
        }
    }

    /// The gradient of the first operand from that of each element of the result.
    pub(super) fn reduce_to_a<T: Real>(&self, grad: Vec<T>) -> Vec<T> {
        sum_to_shape(Cow::Owned(grad), &self.out, &self.a).into_owned()
    }

    /// The gradient of the second operand from that of each element of the result.
    pub(super) fn reduce_to_b<T: Real>(&self, grad: Vec<T>) -> Vec<T> {
        sum_to_shape(Cow::Owned(grad), &self.out, &self.b).into_owned()
    }
}

/// Sums elements of shape `dims` over the axes along which `target` is repeated to reach it.
pub(super) fn sum_to_shape<'a, T: Real>(
    mut x: Cow<'a, [T]>,
    dims: &[usize],
    target: &[usize],
) -> Cow<'a, [T]> {
    let missing = dims.len() - target.len();
    let repeated = |i: usize| dims[i] != 1 && (i < missing || target[i - missing] == 1);
    let mut inner = 1;
    let mut end = dims.len();
    while end > 0 {
        if !repeated(end - 1) {
            inner *= dims[end - 1];
            end -= 1;
            continue;
        }
        // Neighbouring repeated axes are summed at once.
        let mut start = end - 1;
        while start > 0 && (repeated(start - 1) || dims[start - 1] == 1) {
            start -= 1;
        }
        let around = Around {
            outer: dims[..start].iter().product(),
            n: dims[start..end].iter().product(),
            inner,
        };
        x = Cow::Owned(sum_middle(&x, around));
        end = start;
    }
    x
}
