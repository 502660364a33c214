"""scaled_dot_product_attention, rotary_embedding."""

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .record import FLOATS

ATTENTION = {"f32": "relative 2e-6", "f64": "relative 1e-14", "f16": "relative 2e-3", "bf16": "relative 1.6e-2"}
ATTENTION_GRADIENTS = {"f32": "relative 4e-6", "f64": "relative 2e-14", "f16": "relative 5e-3", "bf16": "relative 4e-2"}


def record(r):
    def qkv(q, k, v=None, mask=None):
        def draw(d):
            given = dict(query=d.normal(*q), key=d.normal(*k), value=d.normal(*(v or k)))
            if mask:
                given["attn_mask"] = mask(d)
            return given

        return draw

    add = lambda name, operands, attributes=None, **more: r.add(
        "scaled_dot_product_attention",
        name,
        attention,
        operands,
        attributes,
        tolerance=ATTENTION,
        gradient_tolerance=ATTENTION_GRADIENTS,
        **more,
    )
    add("plain", qkv((1, 2, 3, 4), (1, 2, 5, 4)), dtypes=FLOATS)
    add("value_width", qkv((2, 3, 4), (2, 5, 4), (2, 5, 6)))
    add("scale", qkv((1, 2, 3, 4), (1, 2, 3, 4)), dict(scale=0.3))
    add("causal", qkv((1, 2, 4, 3), (1, 2, 4, 3)), dict(is_causal=True), dtypes=("f32", "bf16"))
    add("causal_more_keys", qkv((1, 1, 3, 4), (1, 1, 5, 4)), dict(is_causal=True))
    add("causal_more_queries", qkv((1, 1, 5, 4), (1, 1, 3, 4)), dict(is_causal=True))
    add("float_mask", qkv((2, 2, 3, 4), (2, 2, 5, 4), mask=lambda d: d.normal(3, 5)))
    add(
        "mask_broadcast", qkv((2, 2, 3, 4), (2, 2, 5, 4), mask=lambda d: d.normal(2, 1, 1, 5)), constants=("attn_mask",)
    )
    add(
        "bool_mask",
        qkv(
            (1, 2, 3, 4),
            (1, 2, 5, 4),
            mask=lambda d: torch.tensor([[1, 1, 0, 0, 1], [0, 1, 1, 1, 1], [1, 0, 0, 0, 0]], dtype=torch.bool),
        ),
    )
    add(
        "bool_mask_empty_row",
        qkv(
            (1, 2, 3, 4),
            (1, 2, 5, 4),
            mask=lambda d: torch.tensor([[1, 1, 0, 0, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool),
        ),
    )
    add("grouped_queries", qkv((1, 4, 3, 4), (1, 2, 5, 4)), dict(enable_gqa=True))
    add("grouped_queries_causal", qkv((2, 6, 4, 2), (2, 2, 4, 2)), dict(enable_gqa=True, is_causal=True))

    def rotary(batch, heads, length, width):
        def draw(d):
            angles = torch.arange(length, dtype=torch.float64)[:, None] * 100.0 ** (
                -torch.arange(width // 2) / (width / 2)
            )
            return dict(input=d.normal(batch, heads, length, width), cos=angles.cos(), sin=angles.sin())

        return draw

    for interleaved in (False, True):
        name = "interleaved" if interleaved else "half_split"
        r.add(
            "rotary_embedding",
            name,
            rotary_embedding,
            rotary(2, 2, 5, 6),
            dict(interleaved=interleaved),
            dtypes=FLOATS,
            constants=("cos", "sin"),
        )
        r.add(
            "rotary_embedding",
            f"{name}_one_pair",
            rotary_embedding,
            rotary(1, 1, 3, 2),
            dict(interleaved=interleaved),
            constants=("cos", "sin"),
        )


def attention(**arguments):
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(**arguments)


def rotary_embedding(input, cos, sin, interleaved):
    """Turns the pairs (x[i], x[i + width/2]), or (x[2i], x[2i + 1]), by the angle of their position.

    `cos` and `sin` are [length, width/2].
    Computed in f32 for the half dtypes, rounded once.
    """
    wide = torch.promote_types(input.dtype, torch.float32)
    x, cos, sin = input.to(wide), cos.to(wide), sin.to(wide)
    if interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
    else:
        a, b = x.chunk(2, dim=-1)
        turned = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    return turned.to(input.dtype)
