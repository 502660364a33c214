//! Operators on float tensors, each with the gradient of its formula and a CPU kernel that is worth using.
//!
//! They take and return candle tensors, with PyTorch's meaning of every setting. Where candle's own operator is exact,
//! differentiable and fast enough, it is used; otherwise the operator stands here as a custom one. Each keeps no graph
//! where nothing tracks gradients, computes only the gradients that are wanted, and gives the same bytes for any number
//! of threads.

mod activation;
mod arithmetic;
mod conv;
mod linear;
mod norm;
mod pool;
mod reduce;
mod softmax;

mod broadcast;
mod custom;
mod parallel;
mod real;
mod shape;
mod spatial;
#[cfg(test)]
mod testing;

pub use activation::{
    GeluApproximation, clamp, cos, exp, gelu, hardsigmoid, hardswish, leaky_relu, relu, relu6,
    rsqrt, sigmoid, silu, sin, sqrt, tanh,
};
pub use arithmetic::{Operand, add, div, mul, sub};
pub use conv::{
    Conv, ConvTranspose, Padding, conv_transpose1d, conv_transpose2d, conv_transpose3d, conv1d,
    conv2d, conv3d,
};
pub use linear::{bmm, linear, matmul, mm};
pub use norm::{group_norm, layer_norm, rms_norm};
pub use pool::{
    AvgPool, MaxPool2d, adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d, avg_pool1d,
    avg_pool2d, avg_pool3d, max_pool2d,
};
pub use softmax::{log_softmax, softmax};
