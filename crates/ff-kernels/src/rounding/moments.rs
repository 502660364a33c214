//! What the algorithms know of a layer's inputs: their means and second moments.

use crate::affine::check_each;
use crate::error::{KernelError, check_len};
use crate::gptq::Hessian;

/// Means and second moments of a layer's inputs over all calibration data: what the error of a linear layer's output
/// depends on, whatever the weight. Made by [`MomentSums::finish`].
///
/// With `x̂` the inputs that the quantized network feeds the layer and `x` those of the float network: `E x̂ x̂ᵀ`, `E x̂`, `E
/// |x̂|`, and, if they differ, `E[x̂ (x-x̂)ᵀ]`, `E[(x-x̂)(x-x̂)ᵀ]` and `E[x-x̂]`. Without samples all are zero.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerMoments {
    pub(super) features: usize,
    pub(super) count: u64,
    /// `E x̂ x̂ᵀ`, `[features, features]`.
    pub(super) gram: Vec<f64>,
    pub(super) mean: Vec<f64>,
    pub(super) mean_abs: Vec<f64>,
    pub(super) shift: Option<Shift>,
}

/// How the inputs of the float network differ from those of the quantized one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shift {
    /// `E[x̂ (x-x̂)ᵀ]`, `[features, features]`.
    pub(super) cross: Vec<f64>,
    /// `E[(x-x̂)(x-x̂)ᵀ]`, `[features, features]`.
    pub(super) energy: Vec<f64>,
    /// `E[x-x̂]`
    pub(super) mean: Vec<f64>,
}

impl LayerMoments {
    /// Numbers of an input.
    pub fn features(&self) -> usize {
        self.features
    }

    /// Samples seen.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// `E x̂ x̂ᵀ`, `[features, features]`.
    pub fn gram(&self) -> &[f64] {
        &self.gram
    }

    /// `E x̂`
    pub fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// `E |x̂|`
    pub fn mean_abs(&self) -> &[f64] {
        &self.mean_abs
    }

    /// The Hessian `2 E x̂ x̂ᵀ`, as [`gptq`](crate::gptq) needs it.
    ///
    /// # Errors
    /// Moments that are not finite.
    pub fn hessian(&self) -> Result<Hessian, KernelError> {
        let n = self.features;
        let count = self.count as f64;
        let row = |row: usize| self.gram[row * n..][..=row].iter().map(move |v| v * count);
        let lower: Vec<f64> = (0..n).flat_map(row).collect();
        Hessian::from_lower(n, self.count, &lower)
    }

    /// The moments of inputs less their means: what the error of the output depends on where the bias is free to take its mean
    /// off, by [`bias_correction`](crate::bias_correction). `E |x̂|` stays as it is.
    ///
    /// ```
    /// use ff_kernels::MomentSums;
    /// let mut sums = MomentSums::new(1);
    /// sums.add(&[3.0, 5.0])?;
    /// assert_eq!(sums.finish().centered().gram(), [1.0]); // 17 - 4²
    /// # Ok::<(), ff_kernels::KernelError>(())
    /// ```
    pub fn centered(&self) -> Self {
        let n = self.features.max(1);
        let less = |matrix: &[f64], left: &[f64], right: &[f64]| -> Vec<f64> {
            let less = |(at, value): (usize, &f64)| value - left[at / n] * right[at % n];
            matrix.iter().enumerate().map(less).collect()
        };
        Self {
            features: self.features,
            count: self.count,
            gram: less(&self.gram, &self.mean, &self.mean),
            mean: vec![0.0; self.features],
            mean_abs: self.mean_abs.clone(),
            shift: self.shift.as_ref().map(|shift| Shift {
                cross: less(&shift.cross, &self.mean, &shift.mean),
                energy: less(&shift.energy, &shift.mean, &shift.mean),
                mean: vec![0.0; self.features],
            }),
        }
    }

    /// The moments of inputs divided by `scale`, `[features]`: of a layer whose weights were multiplied by it.
    ///
    /// # Errors
    /// Another number of scales than features; scales that are not positive and finite.
    pub fn divided_by(&self, scale: &[f32]) -> Result<Self, KernelError> {
        check_len("scales of the inputs", self.features, scale.len())?;
        check_each("scale", "positive and finite", scale, |s| s > 0.0 && s < f32::INFINITY)?;
        let inverse: Vec<f64> = scale.iter().map(|s| 1.0 / f64::from(*s)).collect();
        let vector = |values: &[f64]| values.iter().zip(&inverse).map(|(v, s)| v * s).collect();
        let matrix = |values: &[f64]| {
            let mut out = values.to_vec();
            for (row, left) in out.chunks_exact_mut(self.features.max(1)).zip(&inverse) {
                row.iter_mut().zip(&inverse).for_each(|(value, right)| *value *= left * right);
            }
            out
        };
        Ok(Self {
            features: self.features,
            count: self.count,
            gram: matrix(&self.gram),
            mean: vector(&self.mean),
            mean_abs: vector(&self.mean_abs),
            shift: self.shift.as_ref().map(|shift| Shift {
                cross: matrix(&shift.cross),
                energy: matrix(&shift.energy),
                mean: vector(&shift.mean),
            }),
        })
    }
}

/// Sums over a layer's inputs, from which [`LayerMoments`] are made. Memory does not grow with the data: 8 bytes for each
/// pair of inputs, four times that from the first call of [`MomentSums::add_pair`] on.
///
/// Products are summed as by [`Hessian`]: how samples are dealt out to calls does not matter, nor does the number of threads;
/// their order, and whether the machine fuses multiplications, matter to the last bits.
///
/// ```
/// use ff_kernels::MomentSums;
/// let mut sums = MomentSums::new(2);
/// sums.add(&[1.0, 2.0, 3.0, 0.0])?; // two samples
/// let moments = sums.finish();
/// assert_eq!(moments.gram(), [5.0, 1.0, 1.0, 2.0]);
/// assert_eq!(moments.mean(), [2.0, 1.0]);
/// # Ok::<(), ff_kernels::KernelError>(())
/// ```
#[derive(Debug, Clone)]
pub struct MomentSums {
    features: usize,
    count: u64,
    sum: Vec<f64>,
    sum_abs: Vec<f64>,
    sum_shift: Vec<f64>,
    /// Of `x̂`, where `x` was the same.
    same: Option<Hessian>,
    /// Of `x̂` and `x - x̂`, one after the other.
    paired: Option<Hessian>,
}

impl MomentSums {
    /// No samples yet.
    pub fn new(features: usize) -> Self {
        let zeros = || vec![0.0; features];
        Self {
            features,
            count: 0,
            sum: zeros(),
            sum_abs: zeros(),
            sum_shift: zeros(),
            same: None,
            paired: None,
        }
    }

    /// Adds inputs `[samples, features]`, which the float network has as well.
    ///
    /// # Errors
    /// A slice that is not made of whole samples; numbers that are not finite; so many features that their products do not
    /// fit memory. Nothing is added then.
    pub fn add(&mut self, inputs: &[f32]) -> Result<(), KernelError> {
        let gram = match &mut self.same {
            Some(gram) => gram,
            empty => empty.insert(Hessian::new(self.features)?),
        };
        gram.add(inputs)?;
        self.add_sums(inputs);
        Ok(())
    }

    /// Adds the inputs of the quantized network and of the float one, each `[samples, features]`.
    ///
    /// # Errors
    /// As [`MomentSums::add`]; slices of different length.
    pub fn add_pair(&mut self, quantized: &[f32], float: &[f32]) -> Result<(), KernelError> {
        check_len("float inputs", quantized.len(), float.len())?;
        let n = self.features;
        let paired = match &mut self.paired {
            Some(paired) => paired,
            empty => empty.insert(Hessian::new(2 * n)?),
        };
        if n == 0 || !quantized.len().is_multiple_of(n) {
            let expected = quantized.len().checked_div(n).map_or(0, |rows| (rows + 1) * n);
            return check_len("inputs (whole samples)", expected, quantized.len());
        }
        let mut stacked = Vec::with_capacity(2 * quantized.len());
        for (quantized, float) in quantized.chunks_exact(n).zip(float.chunks_exact(n)) {
            stacked.extend_from_slice(quantized);
            stacked.extend(float.iter().zip(quantized).map(|(float, quantized)| float - quantized));
        }
        paired.add(&stacked)?;
        for sample in stacked.chunks_exact(2 * n) {
            for (sum, shift) in self.sum_shift.iter_mut().zip(&sample[n..]) {
                *sum += f64::from(*shift);
            }
        }
        self.add_sums(quantized);
        Ok(())
    }

    fn add_sums(&mut self, inputs: &[f32]) {
        for sample in inputs.chunks_exact(self.features.max(1)) {
            self.count += 1;
            for ((sum, sum_abs), x) in self.sum.iter_mut().zip(&mut self.sum_abs).zip(sample) {
                *sum += f64::from(*x);
                *sum_abs += f64::from(x.abs());
            }
        }
    }

    /// Adds the samples of other sums.
    ///
    /// # Errors
    /// Another number of features.
    pub fn merge(&mut self, other: MomentSums) -> Result<(), KernelError> {
        check_len("features of the sums to merge", self.features, other.features)?;
        for (gram, other) in [(&mut self.same, other.same), (&mut self.paired, other.paired)] {
            match (gram, other) {
                (Some(gram), Some(other)) => gram.merge(other)?,
                (gram @ None, other) => *gram = other,
                (Some(_), None) => (),
            }
        }
        self.count += other.count;
        let sums = [
            (&mut self.sum, other.sum),
            (&mut self.sum_abs, other.sum_abs),
            (&mut self.sum_shift, other.sum_shift),
        ];
        for (sums, others) in sums {
            sums.iter_mut().zip(others).for_each(|(sum, other)| *sum += other);
        }
        Ok(())
    }

    /// The moments of what was added.
    pub fn finish(self) -> LayerMoments {
        let (n, count) = (self.features, self.count);
        let share = 1.0 / count.max(1) as f64;
        let mut gram = vec![0.0; n * n];
        if let Some(mut same) = self.same {
            let lower = same.lower();
            let mut values = lower.iter();
            for row in 0..n {
                for (column, value) in (0..=row).zip(&mut values) {
                    gram[row * n + column] += value * share;
                    gram[column * n + row] = gram[row * n + column];
                }
            }
        }
        let mean = |sums: Vec<f64>| sums.into_iter().map(|sum| sum * share).collect();
        let shift = self.paired.map(|mut paired| {
            let lower = paired.lower();
            let mut values = lower.iter();
            let (mut cross, mut energy) = (vec![0.0; n * n], vec![0.0; n * n]);
            for row in 0..2 * n {
                for (column, value) in (0..=row).zip(&mut values) {
                    let value = value * share;
                    if row < n {
                        gram[row * n + column] += value;
                        gram[column * n + row] = gram[row * n + column];
                    } else if column < n {
                        cross[column * n + row - n] = value;
                    } else {
                        energy[(row - n) * n + column - n] = value;
                        energy[(column - n) * n + row - n] = value;
                    }
                }
            }
            Shift { cross, energy, mean: mean(self.sum_shift) }
        });
        let (mean, mean_abs) = (mean(self.sum), mean(self.sum_abs));
        LayerMoments { features: n, count, gram, mean, mean_abs, shift }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(count: usize, features: usize, seed: usize) -> Vec<f32> {
        (0..count * features).map(|i| ((i + seed) * 7919 % 1009) as f32 / 500.0 - 1.0).collect()
    }

    #[test]
    fn moments_are_means_of_products() {
        let (count, n) = (700, 37);
        let (quantized, float) = (samples(count, n, 0), samples(count, n, 5));
        let mut sums = MomentSums::new(n);
        sums.add_pair(&quantized[..100 * n], &float[..100 * n]).unwrap();
        let mut rest = MomentSums::new(n);
        rest.add_pair(&quantized[100 * n..600 * n], &float[100 * n..600 * n]).unwrap();
        sums.merge(rest).unwrap();
        sums.add(&quantized[600 * n..]).unwrap();
        let moments = sums.finish();
        let shift = moments.shift.as_ref().unwrap();
        assert_eq!(moments.count(), 700);
        let x = |sample: usize, i: usize| f64::from(quantized[sample * n + i]);
        // The last hundred were the same in both networks.
        let e = |sample: usize, i: usize| {
            if sample < 600 { f64::from(float[sample * n + i]) - x(sample, i) } else { 0.0 }
        };
        let mean = |f: &dyn Fn(usize) -> f64| (0..count).map(f).sum::<f64>() / count as f64;
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} {b}");
        for i in 0..n {
            close(moments.mean()[i], mean(&|s| x(s, i)));
            close(moments.mean_abs()[i], mean(&|s| x(s, i).abs()));
            close(shift.mean[i], mean(&|s| e(s, i)));
            for j in 0..n {
                close(moments.gram()[i * n + j], mean(&|s| x(s, i) * x(s, j)));
                close(shift.cross[i * n + j], mean(&|s| x(s, i) * e(s, j)));
                close(shift.energy[i * n + j], mean(&|s| e(s, i) * e(s, j)));
            }
        }
    }

    #[test]
    fn equal_inputs_are_pairs_without_difference() {
        let x = samples(300, 5, 1);
        let (mut pairs, mut single) = (MomentSums::new(5), MomentSums::new(5));
        pairs.add_pair(&x, &x).unwrap();
        single.add(&x).unwrap();
        let (pairs, single) = (pairs.finish(), single.finish());
        assert_eq!((&pairs.gram, &pairs.mean), (&single.gram, &single.mean));
        let shift = pairs.shift.unwrap();
        assert!(shift.cross.iter().chain(&shift.energy).chain(&shift.mean).all(|v| *v == 0.0));
    }

    #[test]
    fn moments_of_divided_inputs() {
        let (x, scale) = (samples(100, 3, 2), [0.5, 2.0, 4.0]);
        let float: Vec<f32> = x.iter().map(|x| x + 0.25).collect();
        let mut sums = MomentSums::new(3);
        sums.add_pair(&x, &float).unwrap();
        let divide = |x: &[f32]| -> Vec<f32> {
            x.iter().zip(scale.iter().cycle()).map(|(x, s)| x / s).collect()
        };
        let mut divided = MomentSums::new(3);
        divided.add_pair(&divide(&x), &divide(&float)).unwrap();
        let moments = sums.finish();
        // Powers of two: every product and sum is the same but for its exponent.
        assert_eq!(moments.divided_by(&scale).unwrap(), divided.finish());
        assert!(moments.divided_by(&[1.0; 2]).is_err());
        assert!(moments.divided_by(&[1.0, 0.0, 1.0]).is_err());
    }

    #[test]
    fn centered_moments_are_those_of_inputs_less_their_means() {
        let (count, n) = (60, 3);
        let (x, float) = (samples(count, n, 2), samples(count, n, 9));
        let less_mean = |x: &[f32]| -> Vec<f32> {
            let mean = |j: usize| x.iter().skip(j).step_by(n).sum::<f32>() / count as f32;
            let means: Vec<f32> = (0..n).map(mean).collect();
            x.iter().zip(means.iter().cycle()).map(|(x, mean)| x - mean).collect()
        };
        let of = |x: &[f32], float: &[f32]| {
            let mut sums = MomentSums::new(n);
            sums.add_pair(x, float).unwrap();
            sums.finish()
        };
        let (found, wanted) = (of(&x, &float).centered(), of(&less_mean(&x), &less_mean(&float)));
        let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(close(&found.gram, &wanted.gram) && close(&found.mean, &wanted.mean));
        let (found, wanted) = (found.shift.unwrap(), wanted.shift.unwrap());
        assert!(close(&found.cross, &wanted.cross) && close(&found.energy, &wanted.energy));
        assert!(close(&found.mean, &wanted.mean));
    }

    #[test]
    fn hessian_is_twice_the_gram() {
        let x = samples(500, 7, 3);
        let mut sums = MomentSums::new(7);
        sums.add(&x).unwrap();
        let moments = sums.finish();
        let matrix = moments.hessian().unwrap().matrix();
        for (h, g) in matrix.iter().zip(moments.gram()) {
            assert!((h - 2.0 * g).abs() < 1e-12);
        }
    }

    #[test]
    fn what_cannot_be_added_is_refused() {
        let mut sums = MomentSums::new(2);
        assert!(sums.add(&[1.0; 3]).is_err());
        assert!(sums.add(&[1.0, f32::NAN]).is_err());
        assert!(sums.add_pair(&[1.0; 2], &[1.0; 4]).is_err());
        assert!(sums.add_pair(&[1.0; 3], &[1.0; 3]).is_err());
        assert!(sums.add_pair(&[1.0; 2], &[1.0, f32::INFINITY]).is_err());
        assert!(sums.merge(MomentSums::new(3)).is_err());
        let moments = sums.finish();
        assert_eq!((moments.count(), moments.gram()), (0, [0.0; 4].as_slice()));
        assert!(MomentSums::new(0).add(&[]).is_ok());
    }
}
