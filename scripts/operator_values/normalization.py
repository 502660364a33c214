"""softmax, log_softmax, layer_norm, rms_norm, batch_norm, group_norm."""

import torch
import torch.nn.functional as F

from .record import FLOATS, FUNCTIONS, values

# The quotient of sums and products of a row: a few more roundings than a sum.
ROWS = {"f32": "relative 2e-6", "f64": "relative 1e-14", "f16": "relative 1e-3", "bf16": "relative 8e-3"}
ROW_GRADIENTS = {"f32": "relative 4e-6", "f64": "relative 1e-14", "f16": "relative 5e-3", "bf16": "relative 4e-2"}


def record(r):
    softmax(r)
    layer(r)
    batch(r)


def softmax(r):
    x = lambda *shape, scale=1.0: lambda d: dict(input=d.normal(*shape, scale=scale))
    rows = {**FUNCTIONS, "f32": "ulp 8"}
    for op, run in (("softmax", F.softmax), ("log_softmax", F.log_softmax)):
        tolerance = rows if op == "softmax" else ROWS
        r.add(op, "last", run, x(3, 7), dict(dim=-1), dtypes=FLOATS, tolerance=tolerance)
        r.add(op, "first", run, x(4, 3, 2), dict(dim=0), tolerance=tolerance)
        r.add(op, "middle", run, x(2, 5, 3), dict(dim=-2), tolerance=tolerance)
        r.add(
            op,
            "large",
            run,
            lambda d: dict(input=values(1e4, 9999.0, -1e4, 3e38, 88.0, 3e38).reshape(2, 3)),
            dict(dim=1),
            tolerance=ROWS,
        )
        r.add(
            op,
            "half_large",
            run,
            lambda d: dict(input=values(60000.0, 59968.0, -60000.0)),
            dict(dim=0),
            tolerance=ROWS,
            dtypes=("f16",),
        )
        r.add(
            op,
            "minus_infinity",
            run,
            lambda d: dict(input=values(0.5, -torch.inf, 1.0, -torch.inf).reshape(2, 2)),
            dict(dim=1),
            tolerance=ROWS,
            gradient=op == "softmax",
        )
        r.add(
            op,
            "nothing_but_minus_infinity",
            run,
            lambda d: dict(input=values(-torch.inf, -torch.inf)),
            dict(dim=0),
            tolerance=ROWS,
            gradient=False,
        )
        r.add(op, "one_entry", run, x(3, 1), dict(dim=1), tolerance=ROWS)
        r.add(
            op,
            "wider_dtype",
            run,
            x(3, 5),
            dict(dim=1, dtype="f32"),
            dtypes=("f16",),
            tolerance={"f16": "relative 2e-6"},
            checked=False,
        )
    r.add("softmax", "spread", F.softmax, x(2, 9, scale=20.0), dict(dim=1), tolerance=ROWS)


def layer(r):
    x = lambda shape, normalized, weight=True, bias=True: lambda d: {
        "input": d.normal(*shape) + 0.5,
        **({"weight": d.normal(*normalized)} if weight else {}),
        **({"bias": d.normal(*normalized)} if bias else {}),
    }
    tolerances = dict(tolerance=ROWS, gradient_tolerance=ROW_GRADIENTS)
    r.add("layer_norm", "last", F.layer_norm, x((3, 8), (8,)), dict(normalized_shape=[8]), dtypes=FLOATS, **tolerances)
    r.add("layer_norm", "two_axes", F.layer_norm, x((2, 3, 4), (3, 4)), dict(normalized_shape=[3, 4]), **tolerances)
    r.add(
        "layer_norm", "plain", F.layer_norm, x((2, 3, 5), (5,), False, False), dict(normalized_shape=[5]), **tolerances
    )
    r.add(
        "layer_norm",
        "weight_only",
        F.layer_norm,
        x((4, 5), (5,), True, False),
        dict(normalized_shape=[5]),
        **tolerances
    )
    r.add("layer_norm", "large_eps", F.layer_norm, x((4, 5), (5,)), dict(normalized_shape=[5], eps=0.1), **tolerances)
    r.add(
        "layer_norm",
        "constant_rows",
        F.layer_norm,
        lambda d: dict(input=torch.full((2, 4), 3.0, dtype=torch.float64), weight=d.normal(4), bias=d.normal(4)),
        dict(normalized_shape=[4]),
        **tolerances
    )

    r.add(
        "rms_norm",
        "last",
        F.rms_norm,
        x((3, 8), (8,), True, False),
        dict(normalized_shape=[8], eps=1e-5),
        dtypes=FLOATS,
        **tolerances
    )
    r.add(
        "rms_norm",
        "two_axes",
        F.rms_norm,
        x((2, 3, 4), (3, 4), True, False),
        dict(normalized_shape=[3, 4], eps=1e-6),
        **tolerances
    )
    r.add(
        "rms_norm",
        "no_weight",
        F.rms_norm,
        x((2, 3, 5), (5,), False, False),
        dict(normalized_shape=[5], eps=1e-5),
        **tolerances
    )
    # Without eps it is the machine epsilon of the dtype, which only the same dtype shows.
    r.add(
        "rms_norm",
        "default_eps",
        F.rms_norm,
        lambda d: dict(input=d.normal(3, 6, scale=1e-3), weight=d.normal(6)),
        dict(normalized_shape=[6]),
        checked=False,
        **tolerances
    )


def batch(r):
    def operands(shape, statistics=True, affine=True):
        def draw(d):
            channels = shape[1]
            given = dict(input=d.normal(*shape) * 2 + 1)
            if statistics:
                given.update(running_mean=d.normal(channels), running_var=d.uniform(channels, low=0.5, high=2.0))
            if affine:
                given.update(weight=d.normal(channels), bias=d.normal(channels))
            return given

        return draw

    statistics = ("running_mean", "running_var")
    tolerances = dict(tolerance=ROWS, gradient_tolerance=ROW_GRADIENTS)
    r.add(
        "batch_norm",
        "evaluation",
        F.batch_norm,
        operands((2, 3, 4, 5)),
        dict(training=False),
        constants=statistics,
        dtypes=FLOATS,
        **tolerances
    )
    r.add(
        "batch_norm",
        "evaluation_not_affine",
        F.batch_norm,
        operands((4, 3), affine=False),
        dict(training=False, eps=1e-3),
        constants=statistics,
        **tolerances
    )
    r.add(
        "batch_norm",
        "training",
        F.batch_norm,
        operands((3, 4, 2, 3)),
        dict(training=True, momentum=0.1),
        updated=statistics,
        **tolerances
    )
    r.add(
        "batch_norm",
        "training_1d",
        F.batch_norm,
        operands((6, 3)),
        dict(training=True, momentum=0.25, eps=1e-3),
        updated=statistics,
        **tolerances
    )
    r.add(
        "batch_norm",
        "training_no_statistics",
        lambda input, weight, bias, **more: F.batch_norm(input, None, None, weight, bias, **more),
        operands((2, 3, 5), statistics=False),
        dict(training=True),
        **tolerances
    )

    group = lambda shape, affine=True: lambda d: {
        "input": d.normal(*shape) * 2 + 1,
        **({"weight": d.normal(shape[1]), "bias": d.normal(shape[1])} if affine else {}),
    }
    r.add(
        "group_norm", "two_groups", F.group_norm, group((2, 4, 3, 3)), dict(num_groups=2), dtypes=FLOATS, **tolerances
    )
    r.add("group_norm", "one_group", F.group_norm, group((2, 3, 5)), dict(num_groups=1), **tolerances)
    r.add("group_norm", "each_channel", F.group_norm, group((2, 3, 6)), dict(num_groups=3, eps=1e-2), **tolerances)
    r.add("group_norm", "not_affine", F.group_norm, group((2, 6, 2), affine=False), dict(num_groups=3), **tolerances)
