//! Products of quantized operands on their integer codes.
//!
//! With `x = (q + round(o))·s` for both operands, a sum of products is one integer sum and one
//! scale: `Σ a·w = s_a·s_w · Σ (q_a + o_a)(q_w + o_w)`. The integer sum is exact here, whatever its
//! length, so the result has three roundings (four with a bias), where the same product of
//! dequantized floats rounds at every step; [`simulation_bound`] says how far the two can be apart.
//!
//! # How
//!
//! The inner product is `u8 × i8 → i32` of rten-gemm (VNNI, AVX2, NEON, or plain loops), with its
//! traps taken care of:
//! - Signed left codes are shifted by 128 to become unsigned; what the shift and the offsets add
//!   is a multiple of the sums of codes, subtracted afterwards in exact arithmetic.
//! - Machines without VNNI add pairs of products in 16 bits with saturation. There, left codes are
//!   split into their lower seven bits and the eighth, two products that cannot saturate, unless
//!   the right codes are small enough (7 bits and fewer, so any 4-bit weight).
//! - Sums are cut at 65536 terms, before 32 bits could overflow, and go on in 64 bits. Sums that
//!   might not fit 64 bits are refused.
//!
//! Work is cut into chunks that depend on shapes only, and rten-gemm runs inside them on the
//! caller's rayon pool: it has no threads of its own. Since the sums are exact and each output
//! element is finished by itself, the bytes are the same for any number of threads and any
//! instruction set.

mod conv;
mod linear;
mod matmul;
mod operand;
mod product;
mod view;
mod weight;

mod bound;
mod buffer;
mod finish;

pub use bound::simulation_bound;
pub use conv::{ConvWindow, PackedFilter, integer_conv, integer_conv_reference};
pub use linear::{integer_linear, integer_linear_codes, integer_linear_reference};
pub use matmul::{integer_matmul, integer_matmul_codes, integer_matmul_reference};
pub use operand::MAX_OFFSET;
pub use view::CodeView;
pub use weight::PackedWeight;

#[cfg(test)]
mod tests;
