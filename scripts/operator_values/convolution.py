"""conv1d/2d/3d, conv_transpose1d/2d/3d, unfold."""

import torch.nn.functional as F

from .record import FLOATS, GRADIENTS


def record(r):
    forward(r)
    transposed(r)
    unfold(r)


def operands(x, w, bias=True, outputs=None):
    """`w` is [out, in/groups, ...] and its first dimension the length of the bias, unless `outputs` says another."""

    def draw(d):
        given = dict(input=d.normal(*x), weight=d.normal(*w))
        if bias:
            given["bias"] = d.normal(outputs or w[0])
        return given

    return draw


def forward(r):
    r.add("conv1d", "plain", F.conv1d, operands((2, 3, 9), (4, 3, 3)), dtypes=FLOATS)
    r.add("conv1d", "no_bias", F.conv1d, operands((2, 3, 9), (4, 3, 3), bias=False))
    r.add(
        "conv1d",
        "stride_padding_dilation",
        F.conv1d,
        operands((2, 4, 11), (6, 2, 3)),
        dict(stride=2, padding=3, dilation=2, groups=2),
    )
    r.add("conv1d", "padding_same_even_kernel", F.conv1d, operands((1, 2, 7), (3, 2, 4)), dict(padding="same"))
    r.add("conv1d", "padding_valid", F.conv1d, operands((1, 2, 7), (3, 2, 4)), dict(padding="valid", stride=2))
    r.add("conv1d", "depthwise", F.conv1d, operands((2, 4, 8), (4, 1, 3)), dict(groups=4, padding=1))
    r.add("conv1d", "unbatched", F.conv1d, operands((3, 9), (4, 3, 3)), dict(padding=[1]))
    r.add("conv1d", "kernel_as_long_as_input", F.conv1d, operands((2, 3, 5), (2, 3, 5)))

    r.add("conv2d", "plain", F.conv2d, operands((2, 3, 6, 7), (4, 3, 3, 3)), dtypes=FLOATS)
    r.add("conv2d", "pointwise", F.conv2d, operands((2, 5, 4, 4), (3, 5, 1, 1)))
    r.add("conv2d", "pointwise_stride", F.conv2d, operands((2, 5, 5, 4), (3, 5, 1, 1)), dict(stride=2))
    r.add("conv2d", "no_bias", F.conv2d, operands((1, 3, 6, 5), (2, 3, 3, 3), bias=False), dict(padding=1))
    r.add(
        "conv2d",
        "all_per_axis",
        F.conv2d,
        operands((2, 4, 9, 8), (6, 2, 3, 2)),
        dict(stride=[2, 1], padding=[2, 1], dilation=[2, 3], groups=2),
    )
    r.add("conv2d", "stride_leaves_a_rest", F.conv2d, operands((1, 2, 8, 8), (3, 2, 3, 3)), dict(stride=3))
    r.add("conv2d", "stride_beyond_kernel", F.conv2d, operands((1, 2, 8, 7), (3, 2, 2, 2)), dict(stride=3, padding=1))
    r.add(
        "conv2d",
        "depthwise",
        F.conv2d,
        operands((2, 4, 6, 6), (4, 1, 3, 3)),
        dict(groups=4, padding=1),
        dtypes=("f32", "f16", "bf16"),
    )
    r.add(
        "conv2d",
        "depthwise_multiplier",
        F.conv2d,
        operands((1, 3, 6, 5), (6, 1, 3, 3)),
        dict(groups=3, stride=2, padding=1),
    )
    r.add(
        "conv2d", "padding_same", F.conv2d, operands((1, 2, 5, 6), (3, 2, 3, 4)), dict(padding="same", dilation=[1, 2])
    )
    r.add("conv2d", "padding_valid", F.conv2d, operands((1, 2, 5, 6), (3, 2, 3, 4)), dict(padding="valid"))
    r.add("conv2d", "padding_beyond_kernel", F.conv2d, operands((1, 2, 3, 3), (2, 2, 2, 2)), dict(padding=3))
    r.add("conv2d", "unbatched", F.conv2d, operands((3, 5, 5), (2, 3, 3, 3)))
    r.add("conv2d", "empty_batch", F.conv2d, operands((0, 3, 5, 5), (2, 3, 3, 3)))
    r.add("conv2d", "many_channels", F.conv2d, operands((1, 40, 4, 4), (3, 40, 3, 3)), dict(padding=1))

    r.add("conv3d", "plain", F.conv3d, operands((1, 2, 4, 5, 3), (3, 2, 3, 2, 2)), dtypes=FLOATS)
    r.add(
        "conv3d",
        "all_per_axis",
        F.conv3d,
        operands((1, 4, 5, 4, 6), (4, 2, 2, 3, 2)),
        dict(stride=[1, 2, 2], padding=[1, 1, 0], dilation=[2, 1, 2], groups=2),
    )
    r.add("conv3d", "padding_same", F.conv3d, operands((1, 1, 3, 4, 3), (2, 1, 2, 3, 2)), dict(padding="same"))
    r.add("conv3d", "unbatched_no_bias", F.conv3d, operands((2, 4, 4, 4), (2, 2, 3, 3, 3), bias=False), dict(padding=1))


def transposed(r):
    r.add("conv_transpose1d", "plain", F.conv_transpose1d, operands((2, 3, 5), (3, 4, 3), outputs=4), dtypes=FLOATS)
    r.add(
        "conv_transpose1d",
        "stride_output_padding",
        F.conv_transpose1d,
        operands((2, 4, 5), (4, 3, 3), outputs=6),
        dict(stride=3, padding=1, output_padding=2, groups=2, dilation=2),
    )
    r.add(
        "conv_transpose1d",
        "unbatched_no_bias",
        F.conv_transpose1d,
        operands((3, 5), (3, 4, 2), bias=False),
        dict(stride=2),
    )
    r.add(
        "conv_transpose2d", "plain", F.conv_transpose2d, operands((2, 3, 4, 3), (3, 2, 3, 2), outputs=2), dtypes=FLOATS
    )
    r.add(
        "conv_transpose2d",
        "upsampling",
        F.conv_transpose2d,
        operands((1, 4, 3, 3), (4, 2, 4, 4), outputs=2),
        dict(stride=2, padding=1),
    )
    r.add(
        "conv_transpose2d",
        "all_per_axis",
        F.conv_transpose2d,
        operands((1, 4, 3, 4), (4, 3, 2, 3), outputs=6),
        dict(stride=[2, 3], padding=[1, 2], output_padding=[1, 0], groups=2, dilation=[2, 1]),
    )
    r.add(
        "conv_transpose2d",
        "depthwise",
        F.conv_transpose2d,
        operands((2, 3, 3, 3), (3, 1, 3, 3), outputs=3),
        dict(stride=2, groups=3),
    )
    r.add(
        "conv_transpose2d",
        "output_padding_below_dilation",
        F.conv_transpose2d,
        operands((1, 2, 3, 3), (2, 2, 2, 2), outputs=2),
        dict(stride=1, output_padding=1, dilation=2),
    )
    r.add(
        "conv_transpose2d",
        "no_bias",
        F.conv_transpose2d,
        operands((1, 2, 3, 3), (2, 3, 3, 3), bias=False),
        dict(padding=2),
    )
    r.add(
        "conv_transpose3d",
        "plain",
        F.conv_transpose3d,
        operands((1, 2, 3, 2, 3), (2, 3, 2, 3, 2), outputs=3),
        dtypes=FLOATS,
    )
    r.add(
        "conv_transpose3d",
        "all_per_axis",
        F.conv_transpose3d,
        operands((1, 4, 2, 3, 2), (4, 1, 2, 2, 3), outputs=2),
        dict(stride=[2, 1, 2], padding=[1, 0, 1], output_padding=[1, 0, 1], groups=2, dilation=[1, 2, 1]),
    )
    r.add(
        "conv_transpose3d",
        "unbatched",
        F.conv_transpose3d,
        operands((2, 2, 2, 2), (2, 2, 2, 2, 2), outputs=2),
        dict(stride=2),
    )


def unfold(r):
    x = lambda *shape: lambda d: dict(input=d.normal(*shape))
    options = dict(tolerance="exact", gradient_tolerance=GRADIENTS)
    r.add("unfold", "square_kernel", F.unfold, x(2, 2, 4, 5), dict(kernel_size=2), dtypes=FLOATS, **options)
    r.add(
        "unfold",
        "all_per_axis",
        F.unfold,
        x(1, 3, 6, 7),
        dict(kernel_size=[2, 3], dilation=[2, 1], padding=[1, 2], stride=[1, 2]),
        **options
    )
    r.add(
        "unfold", "stride_leaves_a_rest", F.unfold, x(1, 1, 7, 7), dict(kernel_size=3, stride=3, padding=0), **options
    )
    r.add("unfold", "unbatched", F.unfold, x(2, 4, 4), dict(kernel_size=3, padding=1), **options)
