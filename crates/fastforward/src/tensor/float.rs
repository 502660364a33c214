//! Operators on float tensors, each with the gradient of its formula and a CPU kernel that is worth using.
//!
//! They take and return candle tensors. Where candle's own operator is exact, differentiable and fast enough, it is used;
//! otherwise the operator stands here as a custom one.
