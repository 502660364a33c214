"""permute, cat, index_add, embedding, ones_like, zeros_like, full_like, empty_like."""

import torch
import torch.nn.functional as F

from .record import FLOATS, SUMS, integers

EXACT = dict(tolerance="exact")


def record(r):
    one = lambda *shape: lambda d: dict(input=d.normal(*shape))
    r.add("permute", "three_axes", torch.permute, one(2, 3, 4), dict(dims=[2, 0, 1]), dtypes=FLOATS, **EXACT)
    r.add("permute", "negative", torch.permute, one(2, 3, 4), dict(dims=[-1, 0, -2]), **EXACT)
    r.add("permute", "identity", torch.permute, one(2, 3), dict(dims=[0, 1]), **EXACT)
    r.add("permute", "i64", torch.permute, lambda d: dict(input=d.integers(2, 3)), dict(dims=[1, 0]), **EXACT)

    several = lambda *shapes: lambda d: dict(tensors=[d.normal(*shape) for shape in shapes])
    r.add("cat", "rows", torch.cat, several((2, 3), (1, 3), (4, 3)), dict(dim=0), dtypes=FLOATS, **EXACT)
    r.add("cat", "last", torch.cat, several((2, 3, 1), (2, 3, 4)), dict(dim=-1), **EXACT)
    r.add("cat", "middle", torch.cat, several((2, 3, 2), (2, 1, 2)), dict(dim=1), **EXACT)
    r.add("cat", "one", torch.cat, several((2, 3)), **EXACT)
    r.add("cat", "with_empty", torch.cat, several((2, 3), (0, 3)), dict(dim=0), **EXACT)
    r.add("cat", "i64", torch.cat, lambda d: dict(tensors=[d.integers(2, 3), d.integers(2, 3)]), dict(dim=1), **EXACT)
    r.add(
        "cat",
        "f16_with_f32",
        torch.cat,
        lambda d: dict(tensors=[d.normal(2, 3).half(), d.normal(1, 3).float()]),
        dict(dim=0),
        mixed=True,
        checked=False,
        **EXACT
    )

    index_add = lambda shape, index, source: lambda d: dict(
        input=d.normal(*shape), index=integers(*index), source=d.normal(*source)
    )
    named = lambda input, index, source, dim, alpha=1: torch.index_add(input, dim, index, source, alpha=alpha)
    r.add("index_add", "rows", named, index_add((5, 3), (4, 0, 2), (3, 3)), dict(dim=0), dtypes=FLOATS, tolerance=SUMS)
    r.add("index_add", "repeated", named, index_add((5, 3), (1, 1, 4, 1), (4, 3)), dict(dim=0), tolerance=SUMS)
    r.add("index_add", "alpha", named, index_add((2, 4), (3, 3, 0), (2, 3)), dict(dim=-1, alpha=-0.5), tolerance=SUMS)
    r.add("index_add", "middle", named, index_add((2, 4, 3), (2, 0), (2, 2, 3)), dict(dim=1, alpha=2), tolerance=SUMS)
    r.add(
        "index_add",
        "no_index",
        named,
        lambda d: dict(input=d.normal(4, 2), index=torch.zeros(0, dtype=torch.int64), source=d.normal(0, 2)),
        dict(dim=0),
        tolerance=SUMS,
    )
    r.add(
        "index_add",
        "i64",
        named,
        lambda d: dict(input=d.integers(5), index=integers(1, 1, 3), source=d.integers(3)),
        dict(dim=0, alpha=2),
        **EXACT
    )

    embedding(r)

    for op, extra in (("ones_like", {}), ("zeros_like", {}), ("full_like", dict(fill_value=2.5)), ("empty_like", {})):
        tolerance = "shape" if op == "empty_like" else "exact"
        make = dict(gradient=False, tolerance=tolerance, checked=False)
        run = getattr(torch, op)
        filled = lambda *args, _run=run, **more: (
            torch.zeros_like(_run(*args, **more)) if _run is torch.empty_like else _run(*args, **more)
        )
        r.add(op, "same_dtype", filled, one(2, 3), extra, dtypes=FLOATS, **make)
        r.add(op, "other_dtype", filled, one(2, 3), dict(extra, dtype="f64"), **make)
        r.add(
            op,
            "i64",
            filled,
            lambda d: dict(input=d.integers(2, 3)),
            {**extra, **(dict(fill_value=7) if extra else {})},
            **make
        )
        r.add(op, "empty", filled, one(0, 3), extra, **make)


def embedding(r):
    table = lambda rows, columns, *index: lambda d: dict(input=integers(*index), weight=d.normal(rows, columns))
    r.add("embedding", "plain", F.embedding, table(6, 4, 0, 5, 2, 2), dtypes=FLOATS, **EXACT)
    r.add(
        "embedding",
        "two_axes",
        F.embedding,
        lambda d: dict(input=d.integers(2, 3, high=6), weight=d.normal(6, 2)),
        **EXACT
    )
    r.add(
        "embedding", "scalar_index", F.embedding, lambda d: dict(input=torch.tensor(3), weight=d.normal(6, 2)), **EXACT
    )
    r.add(
        "embedding",
        "no_index",
        F.embedding,
        lambda d: dict(input=torch.zeros(0, dtype=torch.int64), weight=d.normal(6, 2)),
        **EXACT
    )
    r.add("embedding", "padding_idx", F.embedding, table(6, 3, 1, 0, 1, 5), dict(padding_idx=1), **EXACT)
    r.add("embedding", "negative_padding_idx", F.embedding, table(6, 3, 1, 5, 5, 0), dict(padding_idx=-1), **EXACT)
    r.add(
        "embedding", "scale_grad_by_freq", F.embedding, table(6, 3, 2, 0, 2, 2), dict(scale_grad_by_freq=True), **EXACT
    )
    r.add("embedding", "sparse", F.embedding, table(6, 3, 2, 0, 2), dict(sparse=True), **EXACT)
    # Rows longer than max_norm are shortened in the table itself.
    r.add(
        "embedding",
        "max_norm",
        F.embedding,
        table(4, 3, 0, 2, 0),
        dict(max_norm=1.0),
        updated=("weight",),
        gradient=False,
        tolerance=SUMS,
    )
    r.add(
        "embedding",
        "max_norm_1",
        F.embedding,
        table(4, 3, 1, 3),
        dict(max_norm=0.5, norm_type=1.0),
        updated=("weight",),
        gradient=False,
        tolerance=SUMS,
    )
