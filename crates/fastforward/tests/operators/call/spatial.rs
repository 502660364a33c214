//! Convolutions and pooling.

use candle_core::Tensor;
use fastforward::tensor::Result;
use fastforward::tensor::float::{self, AvgPool, Conv, ConvTranspose, MaxPool2d, Padding};

use super::Outcome;
use crate::arguments::Arguments;

pub fn call(op: &str, a: &Arguments) -> Option<Result<Outcome>> {
    let result = match op {
        "conv1d" => convolve(a, float::conv1d),
        "conv2d" => convolve(a, float::conv2d),
        "conv3d" => convolve(a, float::conv3d),
        "conv_transpose1d" => transpose(a, float::conv_transpose1d),
        "conv_transpose2d" => transpose(a, float::conv_transpose2d),
        "conv_transpose3d" => transpose(a, float::conv_transpose3d),
        "avg_pool1d" => average(a, float::avg_pool1d),
        "avg_pool2d" => average(a, float::avg_pool2d),
        "avg_pool3d" => average(a, float::avg_pool3d),
        "max_pool2d" => float::max_pool2d(a.tensor("input"), &max_pool(a)),
        "adaptive_avg_pool2d" => {
            float::adaptive_avg_pool2d(a.tensor("input"), a.optional_per_axis("output_size"))
        }
        _ => return None,
    };
    Some(result.map(Outcome::from))
}

type Convolution<O> = fn(&Tensor, &Tensor, Option<&Tensor>, &O) -> Result<Tensor>;

fn convolve<const N: usize>(a: &Arguments, f: Convolution<Conv<N>>) -> Result<Tensor> {
    let (weight, bias) = (a.tensor("weight"), a.optional("bias"));
    f(a.tensor("input"), weight, bias, &conv_options(a))
}

/// The settings of a convolution.
pub fn conv_options<const N: usize>(a: &Arguments) -> Conv<N> {
    let default = Conv::default();
    let padding = match a.attribute("padding").and_then(|padding| padding.as_str()) {
        Some("same") => Padding::Same,
        Some("valid") => Padding::Valid,
        Some(other) => panic!("unknown padding `{other}`"),
        None => a.per_axis("padding").map_or(default.padding, Padding::Explicit),
    };
    Conv {
        stride: a.per_axis("stride").unwrap_or(default.stride),
        padding,
        dilation: a.per_axis("dilation").unwrap_or(default.dilation),
        groups: a.integer("groups").map_or(default.groups, |groups| groups as usize),
    }
}

fn transpose<const N: usize>(a: &Arguments, f: Convolution<ConvTranspose<N>>) -> Result<Tensor> {
    let default = ConvTranspose::default();
    let options = ConvTranspose {
        stride: a.per_axis("stride").unwrap_or(default.stride),
        padding: a.per_axis("padding").unwrap_or(default.padding),
        output_padding: a.per_axis("output_padding").unwrap_or(default.output_padding),
        groups: a.integer("groups").map_or(default.groups, |groups| groups as usize),
        dilation: a.per_axis("dilation").unwrap_or(default.dilation),
    };
    f(a.tensor("input"), a.tensor("weight"), a.optional("bias"), &options)
}

fn average<const N: usize>(
    a: &Arguments,
    f: fn(&Tensor, &AvgPool<N>) -> Result<Tensor>,
) -> Result<Tensor> {
    let default = AvgPool::new(a.per_axis("kernel_size").expect("given"));
    let options = AvgPool {
        kernel_size: default.kernel_size,
        stride: a.per_axis("stride").or(default.stride),
        padding: a.per_axis("padding").unwrap_or(default.padding),
        ceil_mode: a.flag("ceil_mode").unwrap_or(default.ceil_mode),
        count_include_pad: a.flag("count_include_pad").unwrap_or(default.count_include_pad),
    };
    f(a.tensor("input"), &options)
}

fn max_pool(a: &Arguments) -> MaxPool2d {
    let default = MaxPool2d::new(a.per_axis("kernel_size").expect("given"));
    MaxPool2d {
        kernel_size: default.kernel_size,
        stride: a.per_axis("stride").or(default.stride),
        padding: a.per_axis("padding").unwrap_or(default.padding),
        dilation: a.per_axis("dilation").unwrap_or(default.dilation),
        ceil_mode: a.flag("ceil_mode").unwrap_or(default.ceil_mode),
    }
}
