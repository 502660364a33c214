//! What is known of the channels of a value.

use crate::{ArrayView, Error, ErrorKind};

/// Minimum, maximum, mean and standard deviation of each channel of a value, over batches.
///
/// Sums are taken in 64-bit floats, in the order of the elements.
///
/// ```
/// use fastforward_core::{ArrayView, algorithms::ChannelStatistics};
///
/// let mut seen = ChannelStatistics::new(-1); // Channels lie along the last axis.
/// seen.observe(ArrayView::new(&[1.0, -4.0, 3.0, 0.0], &[2, 2])?)?;
/// assert_eq!(seen.mean(), [2.0, -2.0]);
/// assert_eq!(seen.std(), [1.0, 2.0]);
/// assert_eq!(seen.abs_max(), [3.0, 4.0]);
/// # Ok::<(), fastforward_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelStatistics {
    axis: isize,
    /// Elements of each channel.
    count: u64,
    channels: Vec<Channel>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Channel {
    min: f32,
    max: f32,
    sum: f64,
    sum_squared: f64,
}

impl Channel {
    const EMPTY: Self =
        Self { min: f32::INFINITY, max: f32::NEG_INFINITY, sum: 0.0, sum_squared: 0.0 };
}

impl ChannelStatistics {
    /// Statistics along `axis`, counted from the last one where it is negative; of nothing yet.
    pub fn new(axis: isize) -> Self {
        Self { axis, count: 0, channels: Vec::new() }
    }

    /// Takes in one batch.
    ///
    /// # Errors
    /// [`ErrorKind::Granularity`] when the axis does not exist, [`ErrorKind::InvalidData`] for NaN and when the number of
    /// channels is another than before.
    pub fn observe(&mut self, x: ArrayView<'_>) -> Result<(), Error> {
        let shape = x.shape();
        let axis = match self.axis {
            axis if axis < 0 => shape.len().checked_sub(axis.unsigned_abs()),
            axis => Some(axis.unsigned_abs()),
        };
        let Some(axis) = axis.filter(|&axis| axis < shape.len()) else {
            return Err(Error::new(
                ErrorKind::Granularity,
                format!("axis {} does not exist in shape {shape:?}", self.axis),
            ));
        };
        if self.channels.is_empty() {
            self.channels = vec![Channel::EMPTY; shape[axis]];
        }
        if self.channels.len() != shape[axis] {
            return Err(Error::new(
                ErrorKind::InvalidData,
                format!("{} channels, but {} before", shape[axis], self.channels.len()),
            ));
        }
        if x.is_empty() {
            return Ok(());
        }
        let copied = x.strides().map(|_| x.to_array().data);
        let data = copied.as_deref().unwrap_or(x.data());
        let inner: usize = shape[axis + 1..].iter().product();
        for (row, values) in data.chunks_exact(inner).enumerate() {
            let channel = &mut self.channels[row % shape[axis]];
            let mut seen = Channel::EMPTY;
            for &value in values {
                if value.is_nan() {
                    return Err(Error::new(
                        ErrorKind::InvalidData,
                        format!("NaN in channel {}", row % shape[axis]),
                    ));
                }
                seen.min = seen.min.min(value);
                seen.max = seen.max.max(value);
                seen.sum += f64::from(value);
                seen.sum_squared += f64::from(value) * f64::from(value);
            }
            channel.min = channel.min.min(seen.min);
            channel.max = channel.max.max(seen.max);
            channel.sum += seen.sum;
            channel.sum_squared += seen.sum_squared;
        }
        self.count += (data.len() / shape[axis]) as u64;
        Ok(())
    }

    /// How many channels there are; 0 before the first batch.
    pub fn n_channels(&self) -> usize {
        self.channels.len()
    }

    /// How many elements of each channel were seen.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The smallest value of each channel; infinite where nothing was seen.
    pub fn min(&self) -> Vec<f32> {
        self.channels.iter().map(|channel| channel.min).collect()
    }

    /// The largest value of each channel; minus infinite where nothing was seen.
    pub fn max(&self) -> Vec<f32> {
        self.channels.iter().map(|channel| channel.max).collect()
    }

    /// The largest magnitude of each channel.
    pub fn abs_max(&self) -> Vec<f32> {
        self.channels.iter().map(|channel| channel.max.max(-channel.min).max(0.0)).collect()
    }

    /// The mean of each channel; NaN where nothing was seen.
    pub fn mean(&self) -> Vec<f64> {
        self.channels.iter().map(|channel| channel.sum / self.count as f64).collect()
    }

    /// The standard deviation of each channel, `sqrt(E[x^2] - E[x]^2)`; NaN where nothing was seen.
    pub fn std(&self) -> Vec<f64> {
        let n = self.count as f64;
        let variance = self.channels.iter().zip(self.mean()).map(|(channel, mean)| {
            // Rounding may leave less than nothing.
            let variance = channel.sum_squared / n - mean * mean;
            if variance < 0.0 { 0.0 } else { variance }
        });
        variance.map(f64::sqrt).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_add_up_along_any_axis() {
        let data: Vec<f32> = (0..24u8).map(|at| f32::from(at * 7 % 24) - 9.0).collect();
        for (axis, same) in [(0, -3), (1, -2), (2, -1)] {
            let shape = [2, 3, 4];
            let mut whole = ChannelStatistics::new(axis);
            whole.observe(ArrayView::new(&data, &shape).unwrap()).unwrap();
            let channel = |at: usize| at / [12, 4, 1][axis as usize] % shape[axis as usize];
            for wanted in 0..shape[axis as usize] {
                let of_channel = || {
                    data.iter()
                        .enumerate()
                        .filter(|&(at, _)| channel(at) == wanted)
                        .map(|(_, v)| *v)
                };
                let n = of_channel().count() as f64;
                let mean = of_channel().map(f64::from).sum::<f64>() / n;
                let variance = of_channel().map(|v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
                assert_eq!(whole.min()[wanted], of_channel().fold(f32::MAX, f32::min));
                assert_eq!(whole.max()[wanted], of_channel().fold(f32::MIN, f32::max));
                assert!((whole.mean()[wanted] - mean).abs() < 1e-12);
                assert!((whole.std()[wanted] - variance.sqrt()).abs() < 1e-12);
            }
            let mut parts = ChannelStatistics::new(same);
            if axis > 0 {
                for rows in data.chunks(12) {
                    parts.observe(ArrayView::new(rows, &[1, 3, 4]).unwrap()).unwrap();
                }
                assert_eq!((parts.min(), parts.mean()), (whole.min(), whole.mean()));
                assert_eq!(parts.count(), whole.count());
            }
        }
    }

    #[test]
    fn strided_data_are_read_in_their_shape() {
        let data = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]; // [2, 3]
        let mut seen = ChannelStatistics::new(0);
        seen.observe(ArrayView::with_strides(&data, &[3, 2], &[1, 3]).unwrap()).unwrap();
        assert_eq!(seen.max(), [4.0, 5.0, 6.0]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut seen = ChannelStatistics::new(1);
        let check = |seen: &mut ChannelStatistics, data: &[f32], shape: &[usize], message: &str| {
            let error = seen.observe(ArrayView::new(data, shape).unwrap()).unwrap_err();
            assert_eq!(error.to_string(), message);
        };
        check(&mut seen, &[1.0], &[1], "axis 1 does not exist in shape [1]");
        seen.observe(ArrayView::new(&[1.0, 2.0], &[1, 2]).unwrap()).unwrap();
        check(&mut seen, &[1.0], &[1, 1], "1 channels, but 2 before");
        check(&mut seen, &[1.0, f32::NAN], &[1, 2], "NaN in channel 1");
        let mut behind = ChannelStatistics::new(-2);
        check(&mut behind, &[1.0], &[1], "axis -2 does not exist in shape [1]");
        seen.observe(ArrayView::new(&[], &[0, 2]).unwrap()).unwrap(); // An empty batch is no batch.
        assert_eq!(seen.count(), 1);
    }
}
