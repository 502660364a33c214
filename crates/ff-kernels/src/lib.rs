//! Quantization arithmetic on slices.
//!
//! Everything here takes slices and writes slices: this crate knows tiles, scales, offsets and
//! integer grids, and nothing of tensors, models or granularities. A [`Tiling`] says which elements
//! share their parameters; an [`Affine`] holds one scale, and maybe one offset, per tile; an
//! [`IntegerGrid`] says which integers exist.
//!
//! ```
//! use ff_kernels::{Affine, IntegerGrid, Tiling, fake_quantize};
//!
//! let weight = [0.9, -0.2, 0.1, 40.0, 10.0, -5.0]; // [out = 2, in = 3]
//! let rows = Tiling::new(&[2, 3], &[1, 3])?;
//! let affine = Affine { scale: &[0.125, 5.0], offset: None };
//! let mut out = [0.0; 6];
//! fake_quantize(&weight, &rows, affine, IntegerGrid::signed(4)?, &mut out)?;
//! assert_eq!(out, [0.875, -0.25, 0.125, 35.0, 10.0, -5.0]);
//! # Ok::<(), ff_kernels::KernelError>(())
//! ```
//!
//! # Design
//!
//! - One pass over memory: inputs may be strided views and no permuted copy is made; outputs go
//!   into buffers that the caller owns and can reuse.
//! - Large inputs are cut into chunks for rayon's threads. Where chunks cut depends on shapes only
//!   and partial sums are added in the order of the chunks, so results are the same bytes for any
//!   number of threads.
//! - Output much larger than the caches is written past them, which saves reading it first.
//! - Loops are compiled for AVX-512, AVX2 and the plain target, chosen at run time. Each kernel has
//!   a twin whose name ends in `_reference`, made of plain index arithmetic, that it is tested against.
//! - Products of codes ([`integer_linear`], [`integer_matmul`], [`integer_conv`]) sum in integers,
//!   exactly; [`simulation_bound`] says how far that is from the same product of floats.
//! - NaN: kernels with float outputs keep it; kernels that make integer codes or statistics refuse it and
//!   say where it is. Infinities saturate.

#![warn(unsafe_op_in_unsafe_fn)]

mod error;
mod grid;
mod tiling;

mod affine;
mod conv;
mod dynamic;
mod gptq;
mod integer;
mod metrics;
mod onnx;
mod pack;
mod pool;
mod range;
mod rounding;
mod uniform;

mod lanes;
mod map;
mod product;
mod reduce;
pub mod simd;
mod stream;

pub use affine::{
    Affine, Gradients, dequantize, dequantize_packed, dequantize_reference, fake_quantize,
    fake_quantize_backward, fake_quantize_backward_reference, fake_quantize_reference, quantize,
    quantize_packed, quantize_reference,
};
pub use conv::{ConvShape, channel_sums, conv, conv_transposed, conv_weight_gradient};
pub use dynamic::{dynamic_fake_quantize, dynamic_parameters, dynamic_quantize};
pub use error::{AxisMismatch, KernelError, KernelErrorKind};
pub use gptq::{
    DeadColumns, FactorOptions, GptqOptions, GptqResult, Hessian, HessianFactor, NearestRounding,
    gptq, gptq_reference, gptq_with_parameters, hessian_loss,
};
pub use grid::{Code, IntegerGrid};
pub use integer::{
    CodeView, ConvWindow, MAX_OFFSET, PackedFilter, PackedWeight, integer_conv,
    integer_conv_reference, integer_linear, integer_linear_codes, integer_linear_reference,
    integer_matmul, integer_matmul_codes, integer_matmul_reference, simulation_bound,
};
pub use lanes::Real;
pub use metrics::{Difference, SQNR_EPSILON, sqnr_db};
pub use onnx::{LinearParameters, dequantize_linear, dynamic_linear_parameters, quantize_linear};
pub use pack::{Packed, pack, unpack};
pub use pool::{
    AveragePool, MaxPool, Window, average_pool, average_pool_gradient, max_pool, max_pool_gradient,
};
pub use range::{
    Bin, CandidateLayout, Candidates, Degenerate, Histogram, MinMax, Moments, OneSided, Parameters,
    RangeOptions, best_candidates, candidate_errors, candidate_errors_reference,
    histogram_divergences, histogram_errors, histograms, min_max, min_max_reference, moments,
    moments_reference, parameters_for_range, quantization_range, search_min_error,
};
pub use rounding::{
    AdaRoundOptions, Awq, AwqOptions, BiasCorrection, Hqq, HqqOffsets, HqqOptions, LayerMoments,
    MomentSums, RangeChoice, Rounded, SoftRounding, activation_weighted_mse, adaround, awq,
    bias_correction, coordinate_descent, hqq, hqq_offsets, reconstruction_losses,
    reconstruction_losses_reference, sequential_mse,
};
pub use tiling::{Element, Tiling};
pub use uniform::Uniform;
