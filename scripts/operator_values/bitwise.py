"""bitwise_and, bitwise_or, bitwise_xor, bitwise_not, bitwise_left_shift, bitwise_right_shift."""

import torch

from .record import integers

RANGES = {"i64": (-1000, 1000), "i32": (-1000, 1000), "u8": (0, 256)}


def record(r):
    for dtype, (low, high) in RANGES.items():
        draw = lambda *shapes: lambda d: dict(
            zip(("input", "other"), (d.integers(*s, low=low, high=high, dtype=dtype) for s in shapes))
        )
        for op in ("bitwise_and", "bitwise_or", "bitwise_xor"):
            r.add(op, f"same_shape_{dtype}", getattr(torch, op), draw((3, 4), (3, 4)), tolerance="exact")
            r.add(op, f"broadcast_{dtype}", getattr(torch, op), draw((3, 1), (4,)), tolerance="exact")
        r.add("bitwise_not", dtype, torch.bitwise_not, draw((3, 4)), tolerance="exact")

        bits = torch.iinfo(integers(0, dtype=dtype).dtype).bits
        amounts = integers(0, 1, 3, bits - 1, dtype=dtype)
        for op in ("bitwise_left_shift", "bitwise_right_shift"):
            run = getattr(torch, op)
            r.add(
                op,
                f"amounts_{dtype}",
                run,
                lambda d: dict(input=d.integers(3, 4, low=low, high=high, dtype=dtype), other=amounts),
                tolerance="exact",
            )
            r.add(op, f"number_{dtype}", run, draw((3, 4)), dict(other=2), tolerance="exact")
            r.add(op, f"too_far_{dtype}", run, draw((3, 4)), dict(other=bits), tolerance="exact")
