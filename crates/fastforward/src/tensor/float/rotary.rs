//! Rotary position embedding.

use candle_core::Tensor;

use super::custom::{Kernel, apply, in_wider};
use super::parallel::fill_rows;
use super::real::Real;
use super::shape::check_float;
use crate::tensor::{Error, Result};

/// Turns pairs of elements `(a, b)` of `x` by an angle: `(a cos - b sin, b cos + a sin)`.
///
/// `x` is `[.., length, width]`; `cos` and `sin` are `[length, width / 2]`, or `[batch, length, width / 2]` where `batch` is
/// the first axis of `x`. Pair `i` is `(x[i], x[i + width / 2])`, or `(x[2 i], x[2 i + 1])` if `interleaved`
/// (Su et al., "RoFormer", 2021). Beside `x` in `f16` or `bf16` the angles may be in `f32`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use fastforward::tensor::float::rotary;
///
/// let x = Tensor::new(&[[1.0f32, 2.0]], &Device::Cpu)?;
/// let (cos, sin) = (Tensor::new(&[[0.0f32]], &Device::Cpu)?, Tensor::new(&[[1.0f32]], &Device::Cpu)?);
/// assert_eq!(rotary(&x, &cos, &sin, false)?.to_vec2::<f32>()?, [[-2.0, 1.0]]);
/// # Ok::<(), fastforward::tensor::Error>(())
/// ```
///
/// # Errors
///
/// An odd width; shapes that do not fit; operands of several dtypes, of one that is no float, or not on the CPU.
pub fn rotary(x: &Tensor, cos: &Tensor, sin: &Tensor, interleaved: bool) -> Result<Tensor> {
    let name = "rotary";
    check_float(name, "the input", x)?;
    let &[ref leading @ .., length, width] = x.dims() else {
        let found = x.dims();
        return Err(Error::operator(
            name,
            format!("the input has shape {found:?}; it must be [.., length, width]"),
        ));
    };
    if width % 2 != 0 {
        return Err(Error::operator(
            name,
            format!("the input's last axis is {width}; it must be even"),
        ));
    }
    let whole = [length, width / 2];
    let batched = leading.first().map(|&batch| [batch, length, width / 2]);
    for (operand, tensor) in [("cos", cos), ("sin", sin)] {
        let found = tensor.dims();
        let fits = found == whole || batched.is_some_and(|batched| found == batched);
        if !fits || found != cos.dims() {
            return Err(Error::operator(
                name,
                format!(
                    "{operand} has shape {found:?}; for an input of shape {:?} both cos and sin must be {whole:?}, or \
                     with the first axis of the input before",
                    x.dims()
                ),
            ));
        }
    }
    let batches = if cos.rank() == 3 { leading[0] } else { 1 };
    let kernel = Rotary {
        n_rows: leading.iter().product::<usize>() * length,
        length,
        width,
        rows_per_batch: (leading.iter().product::<usize>() * length)
            .checked_div(batches)
            .unwrap_or(0),
        interleaved,
    };
    in_wider(x, [Some(cos), Some(sin)], |x, parameters| match parameters {
        [Some(cos), Some(sin)] => apply(kernel, [x, cos, sin], x.shape()),
        _ => Err(Error::operator(name, "cos or sin is missing")),
    })
}

struct Rotary {
    n_rows: usize,
    length: usize,
    width: usize,
    /// Rows of the input that share one table of angles.
    rows_per_batch: usize,
    interleaved: bool,
}

impl Rotary {
    /// Where the angles of a row start.
    #[inline(always)]
    fn angles(&self, row: usize) -> usize {
        (row / self.rows_per_batch * self.length + row % self.length) * (self.width / 2)
    }

    /// The two elements of a pair.
    #[inline(always)]
    fn pair(&self, i: usize) -> (usize, usize) {
        if self.interleaved { (2 * i, 2 * i + 1) } else { (i, i + self.width / 2) }
    }

    /// Turns all pairs by their angle times `sign`.
    fn turn<T: Real>(&self, x: &[T], cos: &[T], sin: &[T], sign: T) -> Vec<T> {
        let (n, half) = (self.width, self.width / 2);
        fill_rows(
            self.n_rows,
            n,
            #[inline(always)]
            |row, out| {
                let x = &x[row * n..][..n];
                let at = self.angles(row);
                let (cos, sin) = (&cos[at..][..half], &sin[at..][..half]);
                if self.interleaved {
                    for i in 0..half {
                        let (a, b, s) = (x[2 * i], x[2 * i + 1], sin[i] * sign);
                        out[2 * i] = a * cos[i] - b * s;
                        out[2 * i + 1] = b * cos[i] + a * s;
                    }
                } else {
                    let (a, b) = x.split_at(half);
                    let (low, high) = out.split_at_mut(half);
                    for i in 0..half {
                        let s = sin[i] * sign;
                        low[i] = a[i] * cos[i] - b[i] * s;
                        high[i] = b[i] * cos[i] + a[i] * s;
                    }
                }
            },
        )
    }
}

impl Kernel<3> for Rotary {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn forward<T: Real>(&self, [x, cos, sin]: [&[T]; 3]) -> Vec<T> {
        self.turn(x, cos, sin, T::ONE)
    }

    fn backward<T: Real>(
        &self,
        [x, cos, sin]: [&[T]; 3],
        _y: &[T],
        g: &[T],
        wanted: [bool; 3],
    ) -> [Option<Vec<T>>; 3] {
        let x_grad = wanted[0].then(|| self.turn(g, cos, sin, -T::ONE));
        if !(wanted[1] || wanted[2]) {
            return [x_grad, None, None];
        }
        let mut cos_grad = vec![T::ZERO; cos.len()];
        let mut sin_grad = vec![T::ZERO; sin.len()];
        for row in 0..self.n_rows {
            let x = &x[row * self.width..][..self.width];
            let g = &g[row * self.width..][..self.width];
            let at = self.angles(row);
            for i in 0..self.width / 2 {
                let (a, b) = self.pair(i);
                cos_grad[at + i] += g[a] * x[a] + g[b] * x[b];
                sin_grad[at + i] += g[b] * x[a] - g[a] * x[b];
            }
        }
        [x_grad, wanted[1].then_some(cos_grad), wanted[2].then_some(sin_grad)]
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::super::testing::*;
    use super::*;

    #[test]
    fn pairs_are_turned_as_complex_numbers() {
        let x = numbers(&[2, 3, 4, 6], 1);
        for interleaved in [false, true] {
            for angles in [numbers(&[4, 3], 2), numbers(&[2, 4, 3], 3)] {
                let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
                let y = rotary(&strided(&x), &cos, &strided(&sin), interleaved).unwrap();
                let (v, angle, y) = (values(&x), values(&angles), values(&y));
                for row in 0..2 * 3 * 4 {
                    let batch = if angles.rank() == 3 { row / 12 } else { 0 };
                    for i in 0..3 {
                        let (a, b) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + 3) };
                        let turn = angle[(batch * 4 + row % 4) * 3 + i];
                        let (re, im) = (v[row * 6 + a], v[row * 6 + b]);
                        let (length, phase) = (re.hypot(im), im.atan2(re) + turn);
                        assert!((y[row * 6 + a] - length * phase.cos()).abs() < 1e-14);
                        assert!((y[row * 6 + b] - length * phase.sin()).abs() < 1e-14);
                    }
                }
            }
        }
    }

    #[test]
    fn every_operand_has_an_exact_gradient() {
        for interleaved in [false, true] {
            for table in [&[3, 2][..], &[2, 3, 2]] {
                let inputs = [numbers(&[2, 2, 3, 4], 1), numbers(table, 2), numbers(table, 3)];
                check_gradients(&inputs, |t| rotary(&t[0], &t[1], &t[2], interleaved));
            }
        }
    }

    #[test]
    fn angles_may_be_wider_than_the_input() {
        let x = numbers(&[3, 4], 1).to_dtype(DType::BF16).unwrap();
        let (cos, sin) = (numbers(&[3, 2], 2), numbers(&[3, 2], 3));
        let (cos, sin) = (cos.to_dtype(DType::F32).unwrap(), sin.to_dtype(DType::F32).unwrap());
        let y = rotary(&x, &cos, &sin, false).unwrap();
        let wide = rotary(&x.to_dtype(DType::F32).unwrap(), &cos, &sin, false).unwrap();
        assert_close(&y, &values(&wide.to_dtype(DType::BF16).unwrap()), 0.0);
        assert_eq!(y.dtype(), DType::BF16);
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let t = |dims: &[usize]| numbers(dims, 1);
        let message =
            |x: &Tensor, c: &Tensor, s: &Tensor| rotary(x, c, s, false).unwrap_err().to_string();
        assert_eq!(
            message(&t(&[2, 3]), &t(&[2, 1]), &t(&[2, 1])),
            "rotary: the input's last axis is 3; it must be even"
        );
        assert_eq!(
            message(&t(&[2, 4]), &t(&[2, 2]), &t(&[3, 2])),
            "rotary: sin has shape [3, 2]; for an input of shape [2, 4] both cos and sin must be [2, 2], or with the \
             first axis of the input before"
        );
        assert!(
            message(&t(&[4]), &t(&[2]), &t(&[2])).starts_with("rotary: the input has shape [4]")
        );
    }
}
