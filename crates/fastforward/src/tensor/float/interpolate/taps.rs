//! Which elements of an axis an interpolated position is made of.

use super::InterpolateMode;

/// One axis of an interpolation.
pub(super) struct Along {
    pub(super) mode: InterpolateMode,
    pub(super) input: usize,
    pub(super) output: usize,
    /// The factor that was asked for, if it counts rather than the ratio of the sizes.
    pub(super) factor: Option<f64>,
    pub(super) align_corners: bool,
    pub(super) antialias: bool,
    /// Whether positions are computed in single precision, as torch does for every type but double: which element is
    /// nearest may depend on it.
    pub(super) single: bool,
}

/// For each position of the result, elements of the input with their weights.
pub(super) struct Taps(Vec<Vec<(usize, f64)>>);

impl Taps {
    /// Positions of the result.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn of(&self, position: usize) -> &[(usize, f64)] {
        &self.0[position]
    }

    /// The same weights seen from the `input` elements: what the gradient flows along.
    pub(super) fn transposed(&self, input: usize) -> Self {
        let mut back = vec![Vec::new(); input];
        for (position, taps) in self.0.iter().enumerate() {
            for (at, weight) in taps {
                back[*at].push((position, *weight));
            }
        }
        Self(back)
    }
}

impl Along {
    pub(super) fn taps(&self) -> Taps {
        Taps((0..self.output).map(|position| self.position(position)).collect())
    }

    fn position(&self, i: usize) -> Vec<(usize, f64)> {
        let last = self.input - 1;
        let i = i as f64;
        let scale = self.scale();
        match self.mode {
            InterpolateMode::Nearest => vec![((self.round(i * scale) as usize).min(last), 1.0)],
            InterpolateMode::NearestExact => {
                vec![((self.round((i + 0.5) * scale) as usize).min(last), 1.0)]
            }
            InterpolateMode::Bilinear if self.antialias => {
                self.window(i, scale, 1.0, |x| (1.0 - x.abs()).max(0.0))
            }
            InterpolateMode::Bicubic if self.antialias => {
                self.window(i, scale, 2.0, |x| cubic(-0.5, x.abs()))
            }
            InterpolateMode::Bicubic => {
                let at = self.source(i, scale);
                let t = self.round(at - at.floor());
                (-1..=2)
                    .map(|k| {
                        let place = (at.floor() + f64::from(k)).clamp(0.0, last as f64);
                        (place as usize, cubic(-0.75, (t - f64::from(k)).abs()))
                    })
                    .collect()
            }
            // `Area` has its own way; the others are linear along each axis.
            _ => {
                let at = self.source(i, scale).max(0.0);
                let first = (at as usize).min(last);
                let t = self.round(at - first as f64).clamp(0.0, 1.0);
                vec![(first, self.round(1.0 - t)), ((first + 1).min(last), t)]
            }
        }
    }

    /// Input positions from one position of the result to the next.
    fn scale(&self) -> f64 {
        if self.align_corners {
            let steps = self.output - 1;
            return if steps == 0 {
                0.0
            } else {
                self.round((self.input - 1) as f64 / steps as f64)
            };
        }
        self.round(match self.factor {
            Some(factor) => 1.0 / factor,
            None => self.input as f64 / self.output as f64,
        })
    }

    /// Where a position of the result lies in the input.
    fn source(&self, i: f64, scale: f64) -> f64 {
        if self.align_corners {
            return self.round(i * scale);
        }
        self.round(self.round((i + 0.5) * scale) - 0.5)
    }

    /// A filter of this radius around the position, as wide as the step where that is more than one element.
    fn window(
        &self,
        i: f64,
        scale: f64,
        radius: f64,
        filter: impl Fn(f64) -> f64,
    ) -> Vec<(usize, f64)> {
        let widen = scale.max(1.0);
        let (centre, support) = ((i + 0.5) * scale, radius * widen);
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(self.input);
        let weights: Vec<f64> =
            (first..end).map(|at| filter((at as f64 - centre + 0.5) / widen)).collect();
        let total: f64 = weights.iter().sum();
        (first..end).zip(weights).map(|(at, weight)| (at, weight / total)).collect()
    }

    /// Rounds to single precision where that is computed in. A sum, product or quotient of two single numbers that is
    /// rounded to double first comes out the same.
    fn round(&self, value: f64) -> f64 {
        if self.single { f64::from(value as f32) } else { value }
    }
}

/// Cubic convolution at a distance (Keys, "Cubic convolution interpolation for digital image processing", 1981).
fn cubic(a: f64, x: f64) -> f64 {
    if x <= 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
    } else {
        0.0
    }
}
