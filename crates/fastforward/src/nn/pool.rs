//! Pooling: averages and maxima of windows.

use super::setting::layers_with_a_setting;
use super::{Layer, functional as F};
use crate::Module;
use crate::quantization::QuantizerSlot;
use crate::tensor::float::{AvgPool, MaxPool2d as MaxPoolOptions};
use crate::tensor::{Apply, Result, Value};

layers_with_a_setting! {
    /// The mean of each window of `[n, channels, length]`, with slots for input and output; [`AvgPool2d`] says more.
    AvgPool1d, avg_pool1d, avg_pool1d(options);
    /// Windows, stride, padding.
    options: AvgPool<1>;

    /// The mean of each window of `[n, channels, height, width]`, with slots for input and output.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use fastforward::nn::{AvgPool2d, Layer};
    /// use fastforward::tensor::float::AvgPool;
    ///
    /// let x = Tensor::new(&[[[[1f32, 3.0], [5.0, 7.0]]]], &Device::Cpu)?;
    /// let _lenient = fastforward::flags::strict_quantization(false); // no quantizers yet
    /// let y = AvgPool2d::new(AvgPool::new([2, 2])).forward_tensor(&x)?.dequantize()?;
    /// assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, [4.0]);
    /// # Ok::<(), fastforward::tensor::Error>(())
    /// ```
    AvgPool2d, avg_pool2d, avg_pool2d(options);
    /// Windows, stride, padding.
    options: AvgPool<2>;

    /// The mean of each window of `[n, channels, depth, height, width]`, with slots for input and output; [`AvgPool2d`] says
    /// more.
    AvgPool3d, avg_pool3d, avg_pool3d(options);
    /// Windows, stride, padding.
    options: AvgPool<3>;

    /// The largest of each window of `[n, channels, height, width]`, with slots for input and output.
    MaxPool2d, max_pool2d, max_pool2d(options);
    /// Windows, stride, padding.
    options: MaxPoolOptions;

    /// The means of as many windows of `[n, channels, height, width]` as asked for, with slots for input and output;
    /// `[Some(1), Some(1)]` is the mean of everything, `None` keeps the extent of an axis.
    AdaptiveAvgPool2d, adaptive_avg_pool2d, adaptive_avg_pool2d(output_size);
    /// How many windows along each axis.
    output_size: [Option<usize>; 2];
}
