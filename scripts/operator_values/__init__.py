"""The cases of conformance/operators, one module per group of operators."""

from . import activation, arithmetic, arrangement, attention, bitwise, convolution, normalization, pooling, product
from . import resampling

# In the order in which they are written; each becomes one file of tensors.
GROUPS = {
    "product": product,
    "convolution": convolution,
    "pooling": pooling,
    "resampling": resampling,
    "normalization": normalization,
    "activation": activation,
    "arithmetic": arithmetic,
    "bitwise": bitwise,
    "arrangement": arrangement,
    "attention": attention,
}
