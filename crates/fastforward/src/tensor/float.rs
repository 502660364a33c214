//! Operators on float tensors, each with the gradient of its formula and a CPU kernel that is worth using.
//!
//! They take and return candle tensors, with PyTorch's meaning of every setting. Where candle's own operator is exact,
//! differentiable and fast enough, it is used; otherwise the operator stands here as a custom one. Each keeps no graph
//! where nothing tracks gradients, computes only the gradients that are wanted, and gives the same bytes for any number
//! of threads.

mod activation;
mod arithmetic;
mod arrange;
mod batch_norm;
mod conv;
mod dropout;
mod index;
mod interpolate;
mod linear;
mod norm;
mod pad;
mod pool;
mod reduce;
mod rotary;
mod softmax;
mod unfold;
mod whole;

mod broadcast;
mod codes;
mod custom;
mod finish;
mod parallel;
mod real;
mod shape;
mod spatial;
#[cfg(test)]
mod testing;

pub(crate) use activation::elementwise_then;
pub use activation::{
    GeluApproximation, clamp, cos, exp, gelu, hardsigmoid, hardswish, leaky_relu, relu, relu6,
    rsqrt, sigmoid, silu, sin, sqrt, tanh,
};
pub(crate) use arithmetic::{CodePair, ValuesOrNumber, pair_codes, pair_then};
pub use arithmetic::{
    Operand, add, div, floor_divide, mul, negative, positive, pow, remainder, sub,
};
pub use arrange::{cat, empty_like, full_like, ones_like, permute, zeros_like};
pub use batch_norm::{BatchStatistics, batch_norm, batch_norm_training};
pub(crate) use codes::{CodesOf, map_codes};
pub use conv::{
    Conv, ConvTranspose, Padding, conv_transpose1d, conv_transpose2d, conv_transpose3d, conv1d,
    conv2d, conv3d,
};
pub(crate) use custom::{dense, from_floats};
pub use dropout::dropout;
pub(crate) use finish::{Extremes, Finish};
pub use index::{Embedding, embedding, index_add};
pub use interpolate::{Interpolate, InterpolateMode, Resize, interpolate};
pub use linear::{bmm, linear, matmul, mm};
pub(crate) use linear::{linear_then, merge};
pub use norm::{group_norm, layer_norm, rms_norm};
pub(crate) use norm::{normalize_codes, normalize_then};
pub use pad::{Pad, PadMode, pad};
pub use pool::{
    AvgPool, MaxPool2d, adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d, avg_pool1d,
    avg_pool2d, avg_pool3d, max_pool2d,
};
pub use reduce::{cumsum, mean, sum};
pub use rotary::rotary;
pub use softmax::{log_softmax, softmax};
pub(crate) use softmax::{softmax_codes, softmax_then};
pub use unfold::{Unfold, unfold};
pub use whole::{
    bitwise_and, bitwise_left_shift, bitwise_not, bitwise_or, bitwise_right_shift, bitwise_xor,
};
