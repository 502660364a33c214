//! Quantization arithmetic on slices.
