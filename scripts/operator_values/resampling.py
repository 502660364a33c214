"""interpolate, pad."""

import torch.nn.functional as F

from .record import FLOATS


def record(r):
    interpolate(r)
    pad(r)


def interpolate(r):
    x = lambda *shape: lambda d: dict(input=d.normal(*shape))
    add = lambda name, shape, attributes, **more: r.add(
        "interpolate", name, F.interpolate, x(*shape), attributes, **more
    )
    add("nearest_up", (2, 2, 3, 4), dict(scale_factor=2, mode="nearest"), dtypes=FLOATS)
    add("nearest_1d", (2, 2, 5), dict(size=8, mode="nearest"))
    add("nearest_3d", (1, 2, 3, 2, 4), dict(size=[2, 5, 6], mode="nearest"))
    add("nearest_down", (1, 2, 7, 6), dict(size=[3, 4], mode="nearest"))
    add("nearest_fractional_scale", (1, 1, 5, 7), dict(scale_factor=[1.7, 0.6], mode="nearest"))
    add(
        "nearest_recompute_scale",
        (1, 1, 5, 7),
        dict(scale_factor=[1.7, 0.6], mode="nearest", recompute_scale_factor=True),
    )
    add("nearest_exact", (1, 2, 5, 4), dict(size=[7, 3], mode="nearest-exact"))
    add("linear", (2, 2, 5), dict(size=9, mode="linear"))
    add("linear_align_corners", (2, 2, 5), dict(size=9, mode="linear", align_corners=True))
    add("bilinear_up", (1, 2, 3, 4), dict(size=[6, 7], mode="bilinear"), dtypes=FLOATS)
    add("bilinear_down", (1, 2, 7, 6), dict(size=[3, 4], mode="bilinear", align_corners=False))
    add("bilinear_align_corners", (1, 2, 3, 4), dict(size=[5, 9], mode="bilinear", align_corners=True))
    add("bilinear_align_corners_to_one", (1, 2, 3, 4), dict(size=[1, 1], mode="bilinear", align_corners=True))
    add("bilinear_scale_factor", (1, 1, 4, 5), dict(scale_factor=[1.6, 0.7], mode="bilinear"))
    add(
        "bilinear_recompute_scale",
        (1, 1, 4, 5),
        dict(scale_factor=[1.6, 0.7], mode="bilinear", recompute_scale_factor=True),
    )
    add("bilinear_antialias_down", (1, 2, 9, 8), dict(size=[4, 3], mode="bilinear", antialias=True))
    add("bicubic_up", (1, 2, 4, 3), dict(size=[7, 8], mode="bicubic"))
    add("bicubic_down", (1, 1, 8, 7), dict(size=[3, 4], mode="bicubic"))
    add("bicubic_align_corners", (1, 1, 4, 5), dict(size=[9, 6], mode="bicubic", align_corners=True))
    add("bicubic_antialias_down", (1, 1, 9, 8), dict(size=[4, 3], mode="bicubic", antialias=True))
    add("trilinear", (1, 1, 2, 3, 3), dict(size=[3, 5, 4], mode="trilinear"))
    add("trilinear_align_corners", (1, 1, 2, 3, 3), dict(size=[3, 5, 4], mode="trilinear", align_corners=True))
    add("area_down", (1, 2, 7, 6), dict(size=[3, 4], mode="area"))
    add("area_1d", (1, 2, 7), dict(size=3, mode="area"))
    add("same_size", (1, 2, 3, 4), dict(size=[3, 4], mode="bilinear"))


def pad(r):
    x = lambda *shape: lambda d: dict(input=d.normal(*shape))
    add = lambda name, shape, attributes, **more: r.add(
        "pad", name, F.pad, x(*shape), attributes, tolerance="exact", **more
    )
    add("constant", (2, 3, 4), dict(pad=[1, 2], mode="constant"), dtypes=FLOATS)
    add("constant_value_two_axes", (2, 3, 4), dict(pad=[0, 1, 2, 1], mode="constant", value=-1.5))
    add("constant_all_axes", (2, 3), dict(pad=[1, 0, 0, 2], mode="constant", value=0.0))
    add("constant_minus_infinity", (2, 3), dict(pad=[1, 1], mode="constant", value="-inf"))
    add("constant_negative", (2, 4, 5), dict(pad=[-1, 2, -1, -2], mode="constant", value=3.0))
    add("nothing", (2, 3), dict(pad=[0, 0], mode="constant"))
    add("reflect_1d", (2, 3, 5), dict(pad=[4, 2], mode="reflect"), dtypes=FLOATS)
    add("reflect_2d", (1, 2, 4, 3), dict(pad=[2, 1, 3, 0], mode="reflect"))
    add("reflect_3d", (1, 1, 3, 3, 4), dict(pad=[1, 2, 2, 1, 0, 2], mode="reflect"))
    add("reflect_negative", (1, 2, 5, 5), dict(pad=[-1, 2, 1, -2], mode="reflect"))
    add("replicate_1d", (2, 3, 4), dict(pad=[5, 2], mode="replicate"))
    add("replicate_2d", (1, 2, 3, 3), dict(pad=[1, 0, 2, 4], mode="replicate"))
    add("replicate_3d", (1, 1, 2, 3, 2), dict(pad=[1, 1, 0, 2, 3, 0], mode="replicate"))
    add("circular_1d", (2, 3, 4), dict(pad=[4, 3], mode="circular"))
    add("circular_2d", (1, 2, 3, 4), dict(pad=[2, 1, 3, 0], mode="circular"))
    add("unbatched_reflect", (3, 4), dict(pad=[1, 2], mode="reflect"))
    r.add(
        "pad",
        "integers",
        F.pad,
        lambda d: dict(input=d.integers(2, 3, low=-5)),
        dict(pad=[1, 1, 0, 1], mode="constant", value=7),
        tolerance="exact",
    )
