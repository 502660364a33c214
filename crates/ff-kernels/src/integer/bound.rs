//! How far integer and simulated results can be apart.

/// The largest difference between an integer product and the same product of dequantized floats.
///
/// With `n = terms`, `u = 2^-24` and `γ_m = m·u / (1 - m·u)`, the bound is
///
/// `|integer - simulated| ≤ (γ_{n+5} + γ_6) · magnitude`,
///
/// for each element of [`integer_linear`](super::integer_linear) and its kin, against f32
/// arithmetic that dequantizes both operands (one rounding each), multiplies and adds them in any
/// order, with or without fused multiply-add, and adds the bias, before, between or after. `magnitude`
/// is `Σ |a_k·w_k| + |bias|` of that element in dequantized values, or anything larger, such as
/// `terms · max|a| · max|w| + |bias|`.
///
/// Why: of the simulated sum, each product carries two roundings of its operands, one of its own, at
/// most `n` of sums, and one of the bias, so it is off by at most `γ_{n+3}` of the exact magnitude
/// (Higham, *Accuracy and Stability of Numerical Algorithms*, §3.1). The integer sum is exact and
/// carries the roundings of the sum, of the product of the scales, of their product and of the bias:
/// `γ_4`. Two more in each index allow a magnitude that is made of rounded dequantized values.
///
/// It holds where nothing underflows or overflows: scales and their products of at least `2^-126`,
/// and finite results. From `2^24 - 5` terms on there is no bound: infinity.
///
/// ```
/// use ff_kernels::simulation_bound;
/// // 256 products of values up to 4 and 0.5: 1.6e-5 of the largest sum.
/// let bound = simulation_bound(256, 256.0 * 4.0 * 0.5);
/// assert!(bound > 0.0 && bound < 1.7e-5 * 512.0);
/// ```
pub fn simulation_bound(terms: usize, magnitude: f64) -> f64 {
    (gamma(terms as f64 + 5.0) + gamma(6.0)) * magnitude
}

/// The relative error that `roundings` roundings to f32 can add up to.
fn gamma(roundings: f64) -> f64 {
    let error = roundings * f64::from(f32::EPSILON) / 2.0;
    if error < 1.0 { error / (1.0 - error) } else { f64::INFINITY }
}
