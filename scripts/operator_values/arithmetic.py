"""add, sub, mul, div, floor_divide, remainder, pow, negative, positive, sum, cumsum."""

import torch

from .record import FLOATS, FUNCTIONS, SUMS, integers, values

EXACT = dict(tolerance="exact")
BITS = dict(tolerance="bits", gradient=False)
ZEROS = lambda d: dict(input=values(0.0, -0.0, 0.0, -0.0), other=values(0.0, 0.0, -0.0, -0.0))


def record(r):
    sums_and_products(r)
    divisions(r)
    powers(r)
    signs(r)
    reductions(r)


def pair(a, b):
    return lambda d: dict(input=d.normal(*a), other=d.normal(*b))


def one(*shape):
    return lambda d: dict(input=d.normal(*shape))


def sums_and_products(r):
    for op, run in (("add", torch.add), ("sub", torch.sub), ("mul", torch.mul)):
        r.add(op, "same_shape", run, pair((3, 5), (3, 5)), dtypes=FLOATS, **EXACT)
        r.add(op, "broadcast_row", run, pair((3, 5), (5,)), **EXACT)
        r.add(op, "broadcast_both", run, pair((3, 1, 4), (2, 1)), **EXACT)
        r.add(op, "broadcast_scalar_tensor", run, pair((2, 3), ()), **EXACT)
        r.add(op, "empty", run, pair((0, 3), (3,)), **EXACT)
        r.add(op, "number", run, one(2, 3), dict(other=0.75), dtypes=FLOATS, **EXACT)
        r.add(op, "number_is_rounded_first", run, one(2, 3), dict(other=0.7), checked=False, **EXACT)
        r.add(op, "signed_zero", run, ZEROS, **BITS)
        r.add(
            op,
            "infinities",
            run,
            lambda d: dict(
                input=values(torch.inf, -torch.inf, torch.inf, 1.0), other=values(torch.inf, torch.inf, 0.0, torch.nan)
            ),
            gradient=False,
            **EXACT,
        )
        r.add(op, "i64", run, lambda d: dict(input=d.integers(3, 4, low=-9), other=d.integers(4, low=-9)), **EXACT)
        r.add(
            op,
            "u8_wraps",
            run,
            lambda d: dict(input=d.integers(3, 4, high=256, dtype="u8"), other=d.integers(4, high=256, dtype="u8")),
            **EXACT,
        )
        r.add(op, "i64_number", run, lambda d: dict(input=d.integers(4, low=-9)), dict(other=3), **EXACT)
        r.add(op, "i64_with_f32", run, lambda d: dict(input=d.integers(3, 2, low=-9), other=d.normal(2)), **EXACT)
        r.add(
            op,
            "f16_with_f32",
            run,
            lambda d: dict(input=d.normal(3, 2).half(), other=d.normal(2).float()),
            mixed=True,
            checked=False,
            **EXACT,
        )
        r.add(op, "i64_with_float_number", run, lambda d: dict(input=d.integers(4, low=-9)), dict(other=0.5), **EXACT)
    for op, run in (("add", torch.add), ("sub", torch.sub)):
        r.add(op, "alpha_exact", run, pair((3, 5), (5,)), dict(alpha=2), dtypes=FLOATS, tolerance=SUMS)
        r.add(op, "alpha_negative", run, pair((3, 5), (3, 1)), dict(alpha=-0.3), tolerance=SUMS)
        r.add(op, "alpha_number", run, one(2, 3), dict(other=1.5, alpha=0.25), **EXACT)
        r.add(
            op,
            "alpha_i64",
            run,
            lambda d: dict(input=d.integers(4, low=-9), other=d.integers(4, low=-9)),
            dict(alpha=3),
            **EXACT,
        )


def divisions(r):
    apart = lambda a, b: lambda d: dict(
        input=d.normal(*a), other=d.uniform(*b, low=0.5, high=2.0) * torch.from_numpy(d.stream.choice([-1.0, 1.0], b))
    )
    r.add("div", "same_shape", torch.div, apart((3, 5), (3, 5)), dtypes=FLOATS, **EXACT)
    r.add("div", "broadcast", torch.div, apart((3, 1, 4), (2, 1)), **EXACT)
    r.add("div", "number", torch.div, one(2, 3), dict(other=0.3), tolerance={"f32": "ulp 1"})
    r.add(
        "div",
        "integers",
        torch.div,
        lambda d: dict(input=integers(7, -7, 1, 0), other=integers(2, 2, 3, 5)),
        checked=False,
        **EXACT,
    )
    r.add(
        "div",
        "by_zero",
        torch.div,
        lambda d: dict(input=values(1.0, -1.0, 0.0, torch.inf), other=values(0.0, 0.0, 0.0, torch.inf)),
        gradient=False,
        **EXACT,
    )
    r.add(
        "div",
        "signed_zero",
        torch.div,
        lambda d: dict(input=values(0.0, -0.0, 1.0, -1.0), other=values(-2.0, 2.0, -torch.inf, torch.inf)),
        **BITS,
    )

    signs = lambda d: dict(
        input=values(7.0, -7.0, 7.0, -7.0, 6.0, -6.0, 0.5, -0.5),
        other=values(2.0, 2.0, -2.0, -2.0, 3.0, 3.0, -3.0, 3.0),
    )
    whole = lambda d: dict(input=integers(7, -7, 7, -7, 6, -6, 1, 0), other=integers(2, 2, -2, -2, 3, 3, -3, 3))
    bytes_ = lambda d: dict(input=integers(255, 200, 7, 0, dtype="u8"), other=integers(7, 200, 8, 3, dtype="u8"))
    special = lambda d: dict(
        input=values(1.0, -1.0, 0.0, torch.inf, 5.0, -5.0, torch.nan),
        other=values(0.0, 0.0, 0.0, 2.0, torch.inf, torch.inf, 1.0),
    )
    for op, run, gradient in (("floor_divide", torch.floor_divide, False), ("remainder", torch.remainder, True)):
        r.add(op, "signs", run, signs, dtypes=FLOATS, gradient=gradient, **EXACT)
        r.add(op, "normal", run, apart((4, 5), (5,)), gradient=gradient, **EXACT)
        r.add(
            op, "number", run, lambda d: dict(input=d.steps(9, step=0.5)), dict(other=1.5), gradient=gradient, **EXACT
        )
        r.add(
            op,
            "negative_number",
            run,
            lambda d: dict(input=d.steps(9, step=0.5)),
            dict(other=-1.5),
            gradient=gradient,
            **EXACT,
        )
        r.add(op, "i64", run, whole, **EXACT)
        r.add(op, "i64_number", run, lambda d: dict(input=integers(7, -7, 6, -6, 0)), dict(other=-3), **EXACT)
        r.add(op, "u8", run, bytes_, **EXACT)
        r.add(op, "special", run, special, gradient=False, **EXACT)
        r.add(
            op,
            "quotient_just_below",
            run,
            lambda d: dict(input=values(1.0, 0.3, -0.6, 1e8), other=values(0.1, 0.1, 0.2, 0.3)),
            gradient=False,
            checked=False,
            **EXACT,
        )


def powers(r):
    powers = lambda a, b: lambda d: dict(input=d.uniform(*a, low=0.2, high=3.0), exponent=d.normal(*b, scale=2.0))
    r.add("pow", "positive_base", torch.pow, powers((3, 5), (3, 5)), dtypes=FLOATS, tolerance=FUNCTIONS)
    r.add("pow", "broadcast", torch.pow, powers((3, 1), (5,)), tolerance=FUNCTIONS)
    for exponent in (2, 3, 0.5, -1, -2, 1, 2.5):
        r.add(
            "pow",
            f"number_{exponent}",
            torch.pow,
            lambda d: dict(input=d.uniform(7, low=0.2, high=3.0)),
            dict(exponent=exponent),
            tolerance=FUNCTIONS,
        )
    r.add(
        "pow",
        "negative_base_whole_exponent",
        torch.pow,
        lambda d: dict(input=values(-2.0, -2.0, -2.0, -1.5), exponent=values(2.0, 3.0, -1.0, 0.0)),
        constants=("exponent",),
        tolerance=FUNCTIONS,
    )
    r.add("pow", "number_3_negative_base", torch.pow, one(2, 3), dict(exponent=3), tolerance=FUNCTIONS)
    r.add(
        "pow",
        "zero_exponent",
        torch.pow,
        lambda d: dict(input=values(0.0, -3.0, 2.0)),
        dict(exponent=0),
        tolerance=FUNCTIONS,
    )
    r.add(
        "pow",
        "zero_base",
        torch.pow,
        lambda d: dict(input=values(0.0, 0.0, 0.0, 0.0), exponent=values(0.0, 1.0, 2.0, 0.5)),
        tolerance=FUNCTIONS,
    )
    r.add(
        "pow",
        "special",
        torch.pow,
        lambda d: dict(
            input=values(0.0, -0.0, -8.0, torch.inf, -torch.inf, 1.0, torch.nan, -1.0),
            exponent=values(-1.0, -1.0, 1 / 3, 0.0, 3.0, torch.nan, 0.0, torch.inf),
        ),
        gradient=False,
        **EXACT,
    )
    r.add("pow", "i64", torch.pow, lambda d: dict(input=integers(2, -3, 0, 7), exponent=integers(10, 3, 0, 2)), **EXACT)
    r.add("pow", "i64_number", torch.pow, lambda d: dict(input=integers(2, -3, 0, 7)), dict(exponent=3), **EXACT)


def signs(r):
    for op, run in (("negative", torch.negative), ("positive", torch.positive)):
        r.add(op, "normal", run, one(3, 4), dtypes=FLOATS, **EXACT)
        r.add(
            op, "special", run, lambda d: dict(input=values(0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40)), **BITS
        )
        r.add(op, "i64", run, lambda d: dict(input=d.integers(5, low=-9)), **EXACT)
    r.add("negative", "u8_wraps", torch.negative, lambda d: dict(input=integers(0, 1, 255, dtype="u8")), **EXACT)
    r.add("positive", "u8", torch.positive, lambda d: dict(input=integers(0, 1, 255, dtype="u8")), **EXACT)


def reductions(r):
    r.add("sum", "all", torch.sum, one(3, 4, 5), dtypes=FLOATS, tolerance=SUMS)
    r.add("sum", "first", torch.sum, one(3, 4, 5), dict(dim=0), tolerance=SUMS)
    r.add("sum", "last", torch.sum, one(3, 4, 5), dict(dim=-1), dtypes=FLOATS, tolerance=SUMS)
    r.add("sum", "vector", torch.sum, one(300), dict(dim=0), tolerance=SUMS)
    r.add("sum", "scalar_tensor", torch.sum, one(), tolerance=SUMS)
    r.add("sum", "empty", torch.sum, one(0, 3), dict(dim=0), tolerance=SUMS)
    r.add(
        "sum",
        "infinities",
        torch.sum,
        lambda d: dict(input=values(torch.inf, -torch.inf, torch.inf, 1.0).reshape(2, 2)),
        dict(dim=1),
        gradient=False,
        **EXACT,
    )
    r.add("sum", "i64", torch.sum, lambda d: dict(input=d.integers(3, 4, low=-9)), dict(dim=1), **EXACT)
    r.add("sum", "u8", torch.sum, lambda d: dict(input=d.integers(3, 4, high=256, dtype="u8")), **EXACT)

    r.add("cumsum", "first", torch.cumsum, one(5, 3), dict(dim=0), dtypes=FLOATS, tolerance=SUMS)
    r.add("cumsum", "last", torch.cumsum, one(2, 3, 7), dict(dim=-1), tolerance=SUMS)
    r.add("cumsum", "middle", torch.cumsum, one(2, 4, 3), dict(dim=-2), tolerance=SUMS)
    r.add("cumsum", "empty", torch.cumsum, one(0, 3), dict(dim=0), tolerance=SUMS)
    r.add("cumsum", "i64", torch.cumsum, lambda d: dict(input=d.integers(3, 4, low=-9)), dict(dim=1), **EXACT)
    r.add("cumsum", "u8", torch.cumsum, lambda d: dict(input=d.integers(5, high=256, dtype="u8")), dict(dim=0), **EXACT)
