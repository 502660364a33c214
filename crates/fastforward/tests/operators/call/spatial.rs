//! Convolutions, pooling, and other changes of the spatial axes.

use candle_core::Tensor;
use fastforward::tensor::Result;
use fastforward::tensor::float::{
    self, AvgPool, Conv, ConvTranspose, Interpolate, InterpolateMode, MaxPool2d, Pad, PadMode,
    Padding, Unfold,
};

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
        "unfold" => float::unfold(a.tensor("input"), &unfold(a)),
        "pad" => float::pad(a.tensor("input"), &pad(a)),
        "interpolate" => float::interpolate(a.tensor("input"), &interpolate(a)),
        _ => return None,
    };
    Some(result.map(Outcome::from))
}

fn unfold(a: &Arguments) -> Unfold {
    let default = Unfold::new(a.per_axis("kernel_size").expect("given"));
    Unfold {
        kernel_size: default.kernel_size,
        dilation: a.per_axis("dilation").unwrap_or(default.dilation),
        padding: a.per_axis("padding").unwrap_or(default.padding),
        stride: a.per_axis("stride").unwrap_or(default.stride),
    }
}

fn pad(a: &Arguments) -> Pad {
    let pad = a.integers("pad").expect("given").into_iter().map(|n| n as isize).collect();
    let value = a.number("value").unwrap_or(0.0);
    let mode = match a.text("mode").expect("given") {
        "constant" => PadMode::Constant(value),
        "reflect" => PadMode::Reflect,
        "replicate" => PadMode::Replicate,
        "circular" => PadMode::Circular,
        other => panic!("unknown mode `{other}`"),
    };
    Pad { pad, mode }
}

fn interpolate(a: &Arguments) -> Interpolate {
    let mode = match a.text("mode").expect("given") {
        "nearest" => InterpolateMode::Nearest,
        "nearest-exact" => InterpolateMode::NearestExact,
        "linear" => InterpolateMode::Linear,
        "bilinear" => InterpolateMode::Bilinear,
        "bicubic" => InterpolateMode::Bicubic,
        "trilinear" => InterpolateMode::Trilinear,
        "area" => InterpolateMode::Area,
        other => panic!("unknown mode `{other}`"),
    };
    // One number holds for every spatial axis.
    let axes = a.tensor("input").rank() - 2;
    let spread = |list: Vec<f64>| if list.len() == 1 { vec![list[0]; axes] } else { list };
    let options = match (a.numbers("size").map(spread), a.numbers("scale_factor").map(spread)) {
        (Some(size), _) => {
            Interpolate::size(size.into_iter().map(|n| n as usize).collect::<Vec<_>>(), mode)
        }
        (None, Some(factor)) => Interpolate::scale(factor, mode),
        (None, None) => panic!("neither size nor scale_factor"),
    };
    Interpolate {
        align_corners: a.flag("align_corners"),
        recompute_scale_factor: a.flag("recompute_scale_factor"),
        antialias: a.flag("antialias").unwrap_or(false),
        ..options
    }
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
