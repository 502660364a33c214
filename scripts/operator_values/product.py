"""linear, matmul, mm, bmm."""

import torch
import torch.nn.functional as F

from .record import FLOATS


def record(r):
    r.add(
        "linear",
        "bias",
        F.linear,
        lambda d: dict(input=d.normal(3, 8), weight=d.normal(5, 8), bias=d.normal(5)),
        dtypes=FLOATS,
    )
    r.add("linear", "no_bias", F.linear, lambda d: dict(input=d.normal(3, 8), weight=d.normal(5, 8)))
    r.add(
        "linear", "vector_input", F.linear, lambda d: dict(input=d.normal(8), weight=d.normal(5, 8), bias=d.normal(5))
    )
    r.add(
        "linear",
        "leading_dimensions",
        F.linear,
        lambda d: dict(input=d.normal(2, 3, 4, 6), weight=d.normal(5, 6), bias=d.normal(5)),
    )
    r.add(
        "linear", "one_output", F.linear, lambda d: dict(input=d.normal(4, 6), weight=d.normal(1, 6), bias=d.normal(1))
    )
    r.add(
        "linear", "empty_batch", F.linear, lambda d: dict(input=d.normal(0, 6), weight=d.normal(5, 6), bias=d.normal(5))
    )
    r.add(
        "linear",
        "many_features",
        F.linear,
        lambda d: dict(input=d.normal(2, 300), weight=d.normal(3, 300), bias=d.normal(3)),
    )

    both = lambda a, b: lambda d: dict(input=d.normal(*a), other=d.normal(*b))
    r.add("matmul", "matrices", torch.matmul, both((3, 7), (7, 4)), dtypes=FLOATS)
    r.add("matmul", "vector_vector", torch.matmul, both((7,), (7,)))
    r.add("matmul", "vector_matrix", torch.matmul, both((7,), (7, 4)))
    r.add("matmul", "matrix_vector", torch.matmul, both((3, 7), (7,)))
    r.add("matmul", "vector_batch", torch.matmul, both((7,), (2, 7, 4)))
    r.add("matmul", "batch_vector", torch.matmul, both((2, 3, 7), (7,)))
    r.add("matmul", "batch_matrix", torch.matmul, both((2, 3, 7), (7, 4)))
    r.add("matmul", "matrix_batch", torch.matmul, both((3, 7), (2, 7, 4)))
    r.add("matmul", "batches", torch.matmul, both((2, 3, 4, 5), (2, 3, 5, 2)), dtypes=("f32", "bf16"))
    r.add("matmul", "batches_broadcast", torch.matmul, both((2, 1, 4, 5), (3, 5, 2)))
    r.add("matmul", "nothing_to_sum", torch.matmul, both((3, 0), (0, 4)))
    r.add("matmul", "empty_batch", torch.matmul, both((0, 3, 5), (5, 2)))
    r.add(
        "matmul",
        "integers",
        torch.matmul,
        lambda d: dict(input=d.integers(3, 7, low=-9), other=d.integers(7, 4, low=-9)),
        tolerance="exact",
    )

    matrices = lambda a, b: lambda d: dict(input=d.normal(*a), mat2=d.normal(*b))
    r.add("mm", "rectangular", torch.mm, matrices((4, 9), (9, 5)), dtypes=FLOATS)
    r.add("mm", "row_by_column", torch.mm, lambda d: dict(input=d.uniform(1, 9), mat2=d.uniform(9, 1)))
    r.add("mm", "outer", torch.mm, matrices((4, 1), (1, 5)))
    r.add("mm", "no_rows", torch.mm, matrices((0, 9), (9, 5)))
    r.add("bmm", "batch", torch.bmm, matrices((3, 4, 5), (3, 5, 2)), dtypes=FLOATS)
    r.add("bmm", "one_matrix", torch.bmm, matrices((1, 2, 33), (1, 33, 2)))
    r.add("bmm", "empty_batch", torch.bmm, matrices((0, 2, 3), (0, 3, 2)))
