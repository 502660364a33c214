//! Whether a tensor is what was wanted, by the named tolerances of conformance/operators.

use candle_core::{DType, Tensor};
use half::{bf16, f16};

/// How close a tensor must be to the wanted one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// Equal, the sign of zero included.
    Bits,
    /// Equal as numbers.
    Exact,
    /// At most so many representable numbers away.
    Ulp(i64),
    /// At most this share of the largest finite magnitude in the tensor away.
    Relative(f64),
    /// Each element is as wanted or zero, in about the proportion that dropout's `p` says.
    KeptOrZero { p: f64 },
    /// Any value of this shape and dtype.
    Shape,
}

impl Tolerance {
    /// Reads `exact`, `ulp 4`, `relative 2e-6`, ...; `p` is the probability that `kept or zero` refers to.
    pub fn parse(text: &str, p: Option<f64>) -> Result<Self, String> {
        let unknown = || format!("unknown tolerance `{text}`");
        Ok(match text.split_once(' ') {
            None if text == "bits" => Self::Bits,
            None if text == "exact" => Self::Exact,
            None if text == "shape" => Self::Shape,
            Some(("ulp", bound)) => Self::Ulp(bound.parse().map_err(|_| unknown())?),
            Some(("relative", bound)) => Self::Relative(bound.parse().map_err(|_| unknown())?),
            Some(("kept", "or zero")) => Self::KeptOrZero { p: p.ok_or_else(unknown)? },
            _ => return Err(unknown()),
        })
    }

    /// What is wrong with `got`, if anything: shape, dtype, or the worst element.
    pub fn check(self, got: &Tensor, want: &Tensor) -> Result<(), String> {
        if got.dims() != want.dims() {
            return Err(format!("shape {:?}, wanted {:?}", got.dims(), want.dims()));
        }
        if got.dtype() != want.dtype() {
            return Err(format!("dtype {:?}, wanted {:?}", got.dtype(), want.dtype()));
        }
        let (got, want) = (Numbers::of(got), Numbers::of(want));
        if self == Self::Shape {
            return Ok(());
        }
        if let Self::KeptOrZero { p } = self {
            return kept_or_zero(&got, &want, p);
        }
        let largest =
            want.values.iter().copied().filter(|x| x.is_finite()).fold(0.0, |a, x| x.abs().max(a));
        let worst = (0..want.values.len())
            .map(|i| (self.excess(&got, &want, i, largest), i))
            .max_by(|a, b| a.0.total_cmp(&b.0));
        match worst {
            Some((excess, i)) if excess > 1.0 => Err(format!(
                "element {i} is {:?}, wanted {:?} ({excess:.3} times {self:?}); all: {}, wanted {}",
                got.values[i],
                want.values[i],
                shown(&got.values),
                shown(&want.values)
            )),
            _ => Ok(()),
        }
    }

    /// The share of the tolerance that element `i` uses; infinite where no closeness helps.
    fn excess(self, got: &Numbers, want: &Numbers, i: usize, largest: f64) -> f64 {
        let (g, w) = (got.values[i], want.values[i]);
        let unless = |equal: bool| if equal { 0.0 } else { f64::INFINITY };
        if w.is_nan() || g.is_nan() || w.is_infinite() || g.is_infinite() {
            return unless(g == w || (g.is_nan() && w.is_nan()));
        }
        match self {
            Self::Bits => unless(
                got.ordinals[i] == want.ordinals[i] && g.is_sign_negative() == w.is_sign_negative(),
            ),
            Self::Exact => unless(got.ordinals[i] == want.ordinals[i]),
            // Integers are exact whatever the tolerance.
            _ if !want.float => unless(got.ordinals[i] == want.ordinals[i]),
            Self::Ulp(bound) => got.ordinals[i].abs_diff(want.ordinals[i]) as f64 / bound as f64,
            Self::Relative(_) if g == w => 0.0,
            Self::Relative(bound) => (g - w).abs() / (bound * largest),
            Self::KeptOrZero { .. } | Self::Shape => unreachable!("decided before"),
        }
    }
}

/// Elements as f64, and as integers of which neighbours are neighbouring numbers of the dtype.
struct Numbers {
    float: bool,
    values: Vec<f64>,
    ordinals: Vec<i64>,
}

impl Numbers {
    fn of(tensor: &Tensor) -> Self {
        fn read<T: candle_core::WithDType>(tensor: &Tensor) -> Vec<T> {
            tensor
                .flatten_all()
                .and_then(|flat| flat.to_vec1())
                .expect("a tensor on the CPU can be read")
        }
        /// Both zeros are 0, negative numbers count down from it.
        fn ordinal(bits: i64, lowest: i64) -> i64 {
            if bits < 0 { lowest.wrapping_sub(bits) } else { bits }
        }
        let (values, ordinals) = match tensor.dtype() {
            DType::F32 => {
                let v: Vec<f32> = read(tensor);
                (
                    v.iter().map(|&x| f64::from(x)).collect(),
                    v.iter()
                        .map(|x| ordinal(i64::from(x.to_bits() as i32), i64::from(i32::MIN)))
                        .collect(),
                )
            }
            DType::F64 => {
                let v: Vec<f64> = read(tensor);
                (v.clone(), v.iter().map(|x| ordinal(x.to_bits() as i64, i64::MIN)).collect())
            }
            DType::F16 => {
                let v: Vec<f16> = read(tensor);
                (
                    v.iter().map(|x| x.to_f64()).collect(),
                    v.iter()
                        .map(|x| ordinal(i64::from(x.to_bits() as i16), i64::from(i16::MIN)))
                        .collect(),
                )
            }
            DType::BF16 => {
                let v: Vec<bf16> = read(tensor);
                (
                    v.iter().map(|x| x.to_f64()).collect(),
                    v.iter()
                        .map(|x| ordinal(i64::from(x.to_bits() as i16), i64::from(i16::MIN)))
                        .collect(),
                )
            }
            _ => {
                let v: Vec<i64> = read(&tensor.to_dtype(DType::I64).expect("integers fit i64"));
                (v.iter().map(|&x| x as f64).collect(), v)
            }
        };
        Self { float: tensor.dtype().is_float(), values, ordinals }
    }
}

/// The share of dropped elements may be four standard deviations of a binomial from `p`.
fn kept_or_zero(got: &Numbers, want: &Numbers, p: f64) -> Result<(), String> {
    let count = want.values.len() as f64;
    let strange = got.values.iter().zip(&want.values).position(|(g, w)| *g != 0.0 && g != w);
    if let Some(i) = strange {
        return Err(format!(
            "element {i} is {}, neither zero nor {}",
            got.values[i], want.values[i]
        ));
    }
    let dropped = got.values.iter().filter(|g| **g == 0.0).count() as f64;
    if (dropped - p * count).abs() > 4.0 * (p * (1.0 - p) * count).sqrt() {
        return Err(format!(
            "{dropped} of {count} elements are dropped, with a probability of {p}"
        ));
    }
    Ok(())
}

fn shown(values: &[f64]) -> String {
    let head = values.iter().take(12).map(|x| format!("{x:?}")).collect::<Vec<_>>().join(", ");
    if values.len() > 12 { format!("[{head}, ..]") } else { format!("[{head}]") }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn check(tolerance: &str, got: &[f32], want: &[f32]) -> bool {
        let tensor = |values| Tensor::new(values, &Device::Cpu).unwrap();
        Tolerance::parse(tolerance, None).unwrap().check(&tensor(got), &tensor(want)).is_ok()
    }

    #[test]
    fn tolerances_tell_right_from_wrong() {
        let next = f32::from_bits(1.0f32.to_bits() + 1);
        assert!(
            check("bits", &[0.0, f32::NAN], &[0.0, f32::NAN]) && !check("bits", &[-0.0], &[0.0])
        );
        assert!(check("exact", &[-0.0], &[0.0]) && !check("exact", &[next], &[1.0]));
        assert!(
            check("ulp 1", &[next], &[1.0])
                && !check("ulp 1", &[next], &[f32::from_bits(next.to_bits() + 1 + 1)])
        );
        assert!(
            check("ulp 2", &[f32::from_bits(1)], &[-f32::from_bits(1)])
                && !check("ulp 1", &[f32::from_bits(1)], &[-f32::from_bits(1)])
        );
        assert!(
            check("relative 1e-3", &[0.05, 100.0], &[0.0, 100.0])
                && !check("relative 1e-3", &[0.2, 100.0], &[0.0, 100.0])
        );
        assert!(
            !check("relative 1", &[f32::NAN], &[0.0])
                && !check("relative 1", &[f32::INFINITY], &[f32::NEG_INFINITY])
        );
        assert!(!check("shape", &[0.0], &[0.0, 0.0]) && check("shape", &[0.0], &[1.0]));
        assert!(
            Tolerance::parse("about right", None).is_err()
                && Tolerance::parse("kept or zero", None).is_err()
        );
    }
}
