"""relu, relu6, sigmoid, tanh, hardswish, silu, gelu, exp, sin, cos, dropout."""

import torch
import torch.nn.functional as F

from .record import FLOATS, FUNCTIONS, SUMS, values


def record(r):
    normal = lambda d: dict(input=d.normal(5, 9, scale=3.0))
    corners = lambda *numbers: lambda d: dict(input=values(*numbers))
    r.add("relu", "normal", F.relu, normal, dtypes=FLOATS, tolerance="exact")
    r.add(
        "relu",
        "corners",
        F.relu,
        corners(0.0, -1e-40, 1e-40, torch.inf, -torch.inf, torch.nan, -3.0, 2.0),
        tolerance="exact",
    )
    r.add("relu", "integers", F.relu, lambda d: dict(input=d.integers(7, low=-5, high=6)), tolerance="exact")
    r.add("relu6", "normal", F.relu6, normal, dtypes=FLOATS, tolerance="exact")
    r.add("relu6", "corners", F.relu6, corners(0.0, 6.0, 5.5, 6.5, torch.inf, -torch.inf, torch.nan), tolerance="exact")

    r.add("sigmoid", "normal", torch.sigmoid, normal, dtypes=FLOATS, tolerance=FUNCTIONS)
    r.add(
        "sigmoid",
        "large",
        torch.sigmoid,
        corners(0.0, 20.0, -20.0, 80.0, -80.0, 200.0, -200.0, torch.inf, -torch.inf, torch.nan),
        tolerance={"f32": "ulp 8"},
    )
    r.add("tanh", "normal", torch.tanh, normal, dtypes=FLOATS, tolerance=FUNCTIONS)
    r.add(
        "tanh",
        "corners",
        torch.tanh,
        corners(0.0, 1e-6, -1e-3, 0.5, 9.0, -20.0, 100.0, torch.inf, -torch.inf, torch.nan),
        tolerance=FUNCTIONS,
    )
    r.add("hardswish", "normal", F.hardswish, normal, dtypes=FLOATS, tolerance=SUMS)
    r.add("hardswish", "corners", F.hardswish, corners(0.0, 2.5, -2.5, 4.0, -4.0, 1000.0, -1000.0), tolerance=SUMS)
    r.add("hardswish", "kinks", F.hardswish, corners(3.0, -3.0), tolerance="exact", gradient_tolerance="exact")
    r.add("silu", "normal", F.silu, normal, dtypes=FLOATS, tolerance=FUNCTIONS)
    r.add("silu", "large", F.silu, corners(0.0, 20.0, -20.0, -80.0, 200.0, -200.0, torch.nan), tolerance=SUMS)
    r.add("gelu", "normal", F.gelu, normal, dict(approximate="none"), dtypes=FLOATS, tolerance=SUMS)
    r.add("gelu", "tanh", F.gelu, normal, dict(approximate="tanh"), dtypes=FLOATS, tolerance=SUMS)
    r.add(
        "gelu",
        "large",
        F.gelu,
        corners(0.0, 1e-6, 12.0, -12.0, 100.0, -100.0, torch.nan),
        dict(approximate="none"),
        tolerance=SUMS,
    )
    r.add(
        "gelu",
        "tanh_large",
        F.gelu,
        corners(0.0, 1e-6, 12.0, -12.0, 100.0, -100.0, torch.nan),
        dict(approximate="tanh"),
        tolerance=SUMS,
    )

    r.add("exp", "normal", torch.exp, normal, dtypes=FLOATS, tolerance=FUNCTIONS)
    r.add(
        "exp",
        "corners",
        torch.exp,
        corners(0.0, 1.0, 88.7, 89.0, -87.0, -104.5, torch.inf, -torch.inf, torch.nan),
        tolerance=FUNCTIONS,
        gradient=False,
    )
    r.add("sin", "normal", torch.sin, normal, dtypes=FLOATS, tolerance=FUNCTIONS)
    r.add("cos", "normal", torch.cos, normal, dtypes=FLOATS, tolerance=FUNCTIONS)
    for op, run in (("sin", torch.sin), ("cos", torch.cos)):
        r.add(
            op,
            "corners",
            run,
            corners(0.0, 1e-6, 1.5, -3.0, 1000.0, -12345.678, torch.inf, torch.nan),
            tolerance=FUNCTIONS,
            gradient=False,
        )
    r.add("sin", "signed_zero", torch.sin, corners(0.0, -0.0), tolerance="bits", gradient=False)
    r.add("tanh", "signed_zero", torch.tanh, corners(0.0, -0.0), tolerance="bits", gradient=False)

    # Which elements are dropped is no part of the contract; that the others are multiplied by 1 / (1 - p) is.
    r.add("dropout", "evaluation", F.dropout, normal, dict(p=0.5, training=False), dtypes=FLOATS, tolerance="exact")
    r.add("dropout", "nothing", F.dropout, normal, dict(p=0.0, training=True), tolerance="exact")
    r.add("dropout", "everything", F.dropout, normal, dict(p=1.0, training=True), tolerance="exact")
    for p in (0.25, 0.5):
        kept = lambda input, p, training: input * (torch.ones_like(input) / (1 - p))
        r.add(
            "dropout",
            f"training_{p}",
            kept,
            lambda d: dict(input=d.normal(20, 20)),
            dict(p=p, training=True),
            tolerance="kept or zero",
            gradient=False,
            checked=False,
        )
