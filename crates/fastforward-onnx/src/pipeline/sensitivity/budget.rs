//! What a network may cost, or must reach.

use std::fmt;
use std::str::FromStr;

use super::SweptSlots;
use crate::error::{Error, ErrorKind};

/// What an allocation of bits must keep to.
///
/// ```
/// use fastforward_onnx::pipeline::Budget;
/// assert_eq!("3.5 bits".parse::<Budget>()?, Budget::AverageBits(3.5));
/// assert_eq!("30kB".parse::<Budget>()?, Budget::Bytes(30_000));
/// assert_eq!("1 MiB".parse::<Budget>()?, Budget::Bytes(1 << 20));
/// assert_eq!("activation_bits<=8".parse::<Budget>()?, Budget::ActivationBits(8.0));
/// assert_eq!("metric>=90".parse::<Budget>()?, Budget::MetricAtLeast(90.0));
/// assert!("4".parse::<Budget>().is_err());
/// # Ok::<(), fastforward_onnx::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// The mean of the bits of all codes, each element of each weight counted once; scales are not counted.
    AverageBits(f64),
    /// Bytes of all constants of the model as [`Plan::constants`](crate::pipeline::Plan::constants) counts them: codes,
    /// scales and zero points of quantized ones, and the others as they are.
    Bytes(u64),
    /// The mean of the bits of the activations that are swept, each element of one sample counted once at each slot that it
    /// passes.
    ActivationBits(f64),
    /// The lowest value that the metric of `[evaluation]` may have, in its own unit.
    MetricAtLeast(f64),
    /// The highest value that it may have, for metrics of which less is better.
    MetricAtMost(f64),
}

impl Budget {
    /// The slots whose widths follow from it; `None` for a bound on the metric, which decides all that are swept.
    pub fn decides(self) -> Option<SweptSlots> {
        match self {
            Self::AverageBits(_) | Self::Bytes(_) => Some(SweptSlots::Weights),
            Self::ActivationBits(_) => Some(SweptSlots::Activations),
            Self::MetricAtLeast(_) | Self::MetricAtMost(_) => None,
        }
    }
}

const UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

impl FromStr for Budget {
    type Err = Error;

    /// # Errors
    /// `Input` for text that is no budget, with the forms there are.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || {
            Error::new(
                ErrorKind::Input,
                format!(
                    "budget `{text}` is none; write average bits of the weights (`4bits`), bytes of the constants (`30kB`, \
                     `120MiB`), average bits of the activations (`activation_bits<=8`), or a bound on the metric \
                     (`metric>=90`)"
                ),
            )
        };
        let positive =
            |number: &str| number.trim().parse::<f64>().ok().filter(|x| x.is_finite() && *x > 0.0);
        let trimmed = text.trim();
        if let Some(bound) = trimmed.strip_prefix("metric") {
            let bound = bound.trim_start();
            let (make, number): (fn(f64) -> Self, &str) =
                match (bound.strip_prefix(">="), bound.strip_prefix("<=")) {
                    (Some(number), _) => (Self::MetricAtLeast, number),
                    (_, Some(number)) => (Self::MetricAtMost, number),
                    _ => return Err(wrong()),
                };
            let number = number.trim().parse::<f64>().ok().filter(|x| x.is_finite());
            return number.map(make).ok_or_else(wrong);
        }
        if let Some(bound) = trimmed.strip_prefix("activation_bits") {
            let number = bound.trim_start().strip_prefix("<=").and_then(positive);
            return number.map(Self::ActivationBits).ok_or_else(wrong);
        }
        let at = trimmed.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
        let (number, unit) = trimmed.split_at(at);
        let number = positive(number).ok_or_else(wrong)?;
        if matches!(unit, "bits" | "bit") {
            return Ok(Self::AverageBits(number));
        }
        let size = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit));
        let (_, size) = size.ok_or_else(wrong)?;
        Ok(Self::Bytes((number * *size as f64) as u64))
    }
}

/// As it is written on the command line.
impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AverageBits(bits) => write!(f, "{bits} bits"),
            Self::Bytes(bytes) => write!(f, "{bytes} B"),
            Self::ActivationBits(bits) => write!(f, "activation_bits<={bits}"),
            Self::MetricAtLeast(bound) => write!(f, "metric>={bound}"),
            Self::MetricAtMost(bound) => write!(f, "metric<={bound}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_budget_is_refused_with_the_forms_there_are() {
        let wrong = [
            "",
            "4",
            "bits",
            "0bits",
            "-1bits",
            "infbits",
            "NaNbits",
            "4 bytes",
            "metric",
            "metric>90",
            "metric>=",
            "metric==1",
            "metric>=nan",
            "4kBB",
            "1e400B",
            "kB",
            "activation_bits",
            "activation_bits>=8",
            "activation_bits<=0",
            "activation_bits<=x",
            "8activation_bits",
        ];
        for text in wrong {
            let error = text.parse::<Budget>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Input);
            assert!(error.to_string().contains("`4bits`"), "{text}: {error}");
        }
    }

    #[test]
    fn budgets_read_back_as_they_are_shown() {
        for text in [
            "4bits",
            "2.25 bit",
            "30kB",
            "1.5 mib",
            "activation_bits <= 6.5",
            "metric>=90.25",
            "metric <= 0.1",
        ] {
            let budget: Budget = text.parse().unwrap();
            assert_eq!(budget.to_string().parse::<Budget>().unwrap(), budget, "{text}");
        }
    }
}
