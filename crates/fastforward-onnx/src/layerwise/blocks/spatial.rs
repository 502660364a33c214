//! Convolutions and pools of a block, and their gradients.

use fastforward_core::algorithms::layerwise::Windows;
use ff_kernels::{
    AveragePool, ConvShape, MaxPool, Window, average_pool, average_pool_gradient, conv,
    conv_transposed, conv_weight_gradient, max_pool, max_pool_gradient,
};

use super::value::Value;

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// `[batch, channels, ..]` of a result.
fn output_shape(shape: &ConvShape, x: &Value, channels: usize) -> Vec<usize> {
    let rank = x.shape.len() - 2;
    [&[shape.batch, channels], &shape.output[3 - rank..]].concat()
}

/// A convolution.
pub(super) fn convolve(
    windows: &Windows,
    x: &Value,
    weight: &Value,
    bias: Option<&Value>,
) -> Result<Value, String> {
    let channels = channels_of(weight)?;
    let shape = windows.conv_shape(&x.shape, channels)?;
    let out_shape = output_shape(&shape, x, channels);
    let mut data = vec![0.0; out_shape.iter().product()];
    let bias = bias.map(|bias| bias.data.as_slice());
    conv(&shape, &x.data, &weight.data, bias, &mut data).map_err(text)?;
    Ok(Value { shape: out_shape, data })
}

/// The gradient of a convolution's input.
pub(super) fn convolution_input_gradient(
    windows: &Windows,
    x: &Value,
    weight: &Value,
    gradient: &[f32],
) -> Result<Vec<f32>, String> {
    let shape = windows.conv_shape(&x.shape, channels_of(weight)?)?;
    let mut found = vec![0.0; x.data.len()];
    conv_transposed(&shape, gradient, &weight.data, None, &mut found).map_err(text)?;
    Ok(found)
}

/// The gradient of a convolution's weight.
pub(super) fn convolution_weight_gradient(
    windows: &Windows,
    x: &Value,
    weight: &Value,
    gradient: &[f32],
) -> Result<Vec<f32>, String> {
    let shape = windows.conv_shape(&x.shape, channels_of(weight)?)?;
    let mut found = vec![0.0; weight.data.len()];
    conv_weight_gradient(&shape, &x.data, gradient, &mut found).map_err(text)?;
    Ok(found)
}

fn channels_of(weight: &Value) -> Result<usize, String> {
    weight.shape.first().copied().ok_or_else(|| "its weight is a single number".to_owned())
}

/// What a pool makes of its windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pool {
    /// The largest.
    Max,
    /// The mean.
    Average {
        /// Whether zeros around the input count.
        include_padding: bool,
    },
}

/// The windows of a pool; `None` for one over all positions.
pub(super) type PoolWindows = Option<Windows>;

/// A pool on an input of a shape.
enum Sized {
    Max(MaxPool),
    Average(AveragePool),
}

fn sized(pool: Pool, windows: &PoolWindows, x: &Value) -> Result<(Sized, Vec<usize>), String> {
    let [_, channels, extents @ ..] = x.shape.as_slice() else {
        return Err(format!("its input has shape {:?}, expected [batch, channels, ..]", x.shape));
    };
    let all = |windows: &Windows| Windows { channels: *channels, groups: 1, ..windows.clone() };
    let windows = match windows {
        Some(windows) => all(windows),
        None => all(&Windows {
            channels: 1,
            groups: 1,
            kernel: extents.to_vec(),
            strides: vec![1; extents.len()],
            dilations: vec![1; extents.len()],
            padding: fastforward_core::algorithms::layerwise::WindowPadding::Explicit(vec![
                0;
                2 * extents.len()
            ]),
        }),
    };
    let shape = windows.conv_shape(&x.shape, *channels)?;
    let out_shape = output_shape(&shape, x, *channels);
    let planes = shape.batch * channels;
    let sized = match pool {
        Pool::Max => {
            let last = |sizes: [usize; 3]| [sizes[1], sizes[2]];
            if shape.input[0] != 1 || shape.kernel[0] != 1 {
                return Err("maxima over three axes have no gradient here".to_owned());
            }
            Sized::Max(MaxPool {
                planes,
                input: last(shape.input),
                output: last(shape.output),
                kernel: last(shape.kernel),
                stride: last(shape.stride),
                dilation: last(shape.dilation),
                padding: last(shape.padding),
            })
        }
        Pool::Average { include_padding } => {
            let windows = std::array::from_fn(|axis| {
                let (kernel, before) = (shape.kernel[axis], shape.padding[axis]);
                let window = |output: usize| {
                    let start = output * shape.stride[axis];
                    let first = start.saturating_sub(before).min(shape.input[axis]);
                    let end = (start + kernel).saturating_sub(before).min(shape.input[axis]);
                    let span = first..end.max(first);
                    let count = if include_padding { kernel } else { span.len() };
                    Window { span, count }
                };
                (0..shape.output[axis]).map(window).collect()
            });
            Sized::Average(AveragePool { planes, input: shape.input, windows })
        }
    };
    Ok((sized, out_shape))
}

/// A pool.
pub(super) fn pooled(pool: Pool, windows: &PoolWindows, x: &Value) -> Result<Value, String> {
    let (sized, shape) = sized(pool, windows, x)?;
    let mut data = vec![0.0; shape.iter().product()];
    match sized {
        Sized::Max(pool) => max_pool(&pool, &x.data, &mut data),
        Sized::Average(pool) => average_pool(&pool, &x.data, &mut data),
    }
    .map_err(text)?;
    Ok(Value { shape, data })
}

/// The gradient of a pool's input.
pub(super) fn pool_gradient(
    pool: Pool,
    windows: &PoolWindows,
    x: &Value,
    gradient: &[f32],
) -> Result<Vec<f32>, String> {
    let (sized, _) = sized(pool, windows, x)?;
    let mut found = vec![0.0; x.data.len()];
    match sized {
        Sized::Max(pool) => max_pool_gradient(&pool, &x.data, gradient, &mut found),
        Sized::Average(pool) => average_pool_gradient(&pool, gradient, &mut found),
    }
    .map_err(text)?;
    Ok(found)
}
