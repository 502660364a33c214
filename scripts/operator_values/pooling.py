"""avg_pool1d/2d/3d, max_pool2d, adaptive_avg_pool2d."""

import torch
import torch.nn.functional as F

from .record import FLOATS


def record(r):
    x = lambda *shape: lambda d: dict(input=d.normal(*shape))
    r.add("avg_pool1d", "plain", F.avg_pool1d, x(2, 3, 8), dict(kernel_size=2, stride=2), dtypes=FLOATS)
    r.add(
        "avg_pool1d",
        "padding_not_counted",
        F.avg_pool1d,
        x(2, 3, 8),
        dict(kernel_size=3, stride=2, padding=1, count_include_pad=False),
    )
    r.add("avg_pool1d", "ceil_mode", F.avg_pool1d, x(1, 2, 8), dict(kernel_size=3, stride=2, padding=1, ceil_mode=True))
    r.add("avg_pool1d", "unbatched", F.avg_pool1d, x(3, 7), dict(kernel_size=[3], stride=[1]))

    r.add("avg_pool2d", "plain", F.avg_pool2d, x(2, 3, 6, 6), dict(kernel_size=2, stride=2), dtypes=FLOATS)
    r.add("avg_pool2d", "overlapping", F.avg_pool2d, x(1, 2, 6, 7), dict(kernel_size=[3, 2], stride=[1, 2]))
    r.add("avg_pool2d", "padding_counted", F.avg_pool2d, x(1, 2, 5, 6), dict(kernel_size=3, stride=2, padding=1))
    r.add(
        "avg_pool2d",
        "padding_not_counted",
        F.avg_pool2d,
        x(1, 2, 5, 6),
        dict(kernel_size=3, stride=2, padding=1, count_include_pad=False),
    )
    r.add("avg_pool2d", "ceil_mode", F.avg_pool2d, x(1, 2, 6, 7), dict(kernel_size=[3, 2], stride=2, ceil_mode=True))
    r.add(
        "avg_pool2d",
        "ceil_mode_padding_counted",
        F.avg_pool2d,
        x(1, 2, 6, 6),
        dict(kernel_size=3, stride=2, padding=1, ceil_mode=True),
    )
    r.add(
        "avg_pool2d",
        "ceil_mode_padding_not_counted",
        F.avg_pool2d,
        x(1, 2, 6, 6),
        dict(kernel_size=3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
    )
    r.add(
        "avg_pool2d",
        "ceil_mode_last_window_in_padding",
        F.avg_pool2d,
        x(1, 1, 4, 5),
        dict(kernel_size=2, stride=3, padding=1, ceil_mode=True),
    )
    r.add("avg_pool2d", "stride_beyond_kernel", F.avg_pool2d, x(1, 2, 7, 7), dict(kernel_size=2, stride=3))
    r.add("avg_pool2d", "unbatched", F.avg_pool2d, x(2, 4, 4), dict(kernel_size=2, stride=2))

    r.add("avg_pool3d", "plain", F.avg_pool3d, x(1, 2, 4, 4, 4), dict(kernel_size=2, stride=2), dtypes=("f32", "f64"))
    r.add(
        "avg_pool3d",
        "all_per_axis",
        F.avg_pool3d,
        x(1, 2, 5, 4, 6),
        dict(kernel_size=[3, 2, 2], stride=[2, 1, 3], padding=[1, 0, 1], ceil_mode=True, count_include_pad=False),
    )
    r.add(
        "avg_pool3d",
        "ceil_mode_padding_counted",
        F.avg_pool3d,
        x(1, 1, 4, 4, 5),
        dict(kernel_size=3, stride=2, padding=1, ceil_mode=True),
    )

    # The maximum is one of the operands; equal ones give their gradient to the first of the window.
    exact = dict(tolerance="exact")
    ties = lambda d: dict(input=d.steps(1, 2, 6, 6, low=-2, high=3))
    r.add("max_pool2d", "plain", F.max_pool2d, x(2, 3, 6, 6), dict(kernel_size=2), dtypes=FLOATS, **exact)
    r.add("max_pool2d", "overlapping", F.max_pool2d, x(2, 2, 7, 7), dict(kernel_size=3, stride=2, padding=1), **exact)
    r.add("max_pool2d", "ties", F.max_pool2d, ties, dict(kernel_size=3, stride=2, padding=1), **exact)
    r.add(
        "max_pool2d",
        "all_equal",
        F.max_pool2d,
        lambda d: dict(input=torch.zeros(1, 1, 4, 4, dtype=torch.float64)),
        dict(kernel_size=2, stride=1),
        **exact
    )
    r.add(
        "max_pool2d",
        "all_per_axis",
        F.max_pool2d,
        x(1, 2, 8, 9),
        dict(kernel_size=[2, 3], stride=[3, 1], padding=[1, 0], dilation=[1, 2]),
        **exact
    )
    r.add(
        "max_pool2d", "ceil_mode", F.max_pool2d, x(1, 2, 6, 7), dict(kernel_size=3, stride=2, ceil_mode=True), **exact
    )
    r.add(
        "max_pool2d",
        "ceil_mode_padding",
        F.max_pool2d,
        x(1, 2, 6, 6),
        dict(kernel_size=2, stride=3, padding=1, ceil_mode=True),
        **exact
    )
    r.add(
        "max_pool2d",
        "negative_with_padding",
        F.max_pool2d,
        lambda d: dict(input=-d.uniform(1, 2, 4, 4, low=1.0, high=2.0)),
        dict(kernel_size=3, stride=1, padding=1),
        **exact
    )
    r.add("max_pool2d", "infinities", F.max_pool2d, infinite, dict(kernel_size=2), **exact)
    r.add("max_pool2d", "unbatched", F.max_pool2d, x(2, 5, 4), dict(kernel_size=2, stride=[2, 1]), **exact)

    r.add("adaptive_avg_pool2d", "to_one", F.adaptive_avg_pool2d, x(2, 3, 5, 4), dict(output_size=1), dtypes=FLOATS)
    r.add("adaptive_avg_pool2d", "uneven", F.adaptive_avg_pool2d, x(1, 2, 7, 5), dict(output_size=[3, 2]))
    r.add("adaptive_avg_pool2d", "larger_than_input", F.adaptive_avg_pool2d, x(1, 2, 3, 2), dict(output_size=[5, 3]))
    r.add("adaptive_avg_pool2d", "keep_one_axis", F.adaptive_avg_pool2d, x(1, 2, 4, 6), dict(output_size=[None, 4]))
    r.add("adaptive_avg_pool2d", "unbatched", F.adaptive_avg_pool2d, x(2, 6, 6), dict(output_size=[2, 3]))


def infinite(d):
    """A window of nothing but -inf, one with NaN, one with inf."""
    x = d.normal(1, 1, 4, 4)
    x[0, 0, :2, :2] = -torch.inf
    x[0, 0, 1, 3] = torch.nan
    x[0, 0, 2, 0] = torch.inf
    return dict(input=x)
