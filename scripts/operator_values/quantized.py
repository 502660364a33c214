"""Operators on quantized operands: dequantize, float operator, quantize the result."""

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from .affine import Grid
from .record import Draw, write_json

# No float result lies closer than this to the border between two codes, in steps, unless a case is about ties:
# another order of summation cannot change a code.
MARGIN = 2e-3


class Flow:
    """The operands of one case and the grid of its output."""

    def __init__(self, draw):
        self.draw, self.operands = draw, {}

    def codes(self, name, shape, num_bits, scale, offset=None, axis=None):
        """An operand of random codes over the whole range of the bits; scale and offset are vectors or numbers."""
        vector = lambda value: torch.atleast_1d(torch.as_tensor(value, dtype=torch.float64)).float()
        grid = Grid(vector(scale), None if offset is None else vector(offset), num_bits, axis)
        low, high = grid.bounds()
        self.operands[name] = (self.draw.integers(*shape, low=low, high=high + 1, dtype="i32"), grid)
        return self

    def plain(self, name, tensor):
        """An operand that is not quantized."""
        self.operands[name] = tensor.float() if tensor.is_floating_point() else tensor
        return self

    def scales(self, count, low=0.01, high=0.05):
        return self.draw.uniform(count, low=low, high=high)


def covering(result, num_bits, symmetric=False, axis=None, coverage=0.9):
    """A grid for this result that clips its extremes; an asymmetric one has an offset that is not whole."""
    others = [a for a in range(result.dim()) if axis is None or a != axis % result.dim()]
    low, high = result.amin(others).reshape(-1) * coverage, result.amax(others).reshape(-1) * coverage
    half = 2 ** (num_bits - 1)
    if symmetric:
        return Grid(torch.maximum(low.abs() / half, high.abs() / (half - 1)), None, num_bits, axis)
    scale = (high - low) / (2**num_bits - 1)
    return Grid(scale, low / scale + half, num_bits, axis)


def cases():
    """(operator, name, function, attributes, operands, grid of the output or None)."""
    yield (
        "linear",
        "per_channel_weight",
        F.linear,
        {},
        lambda f: f.codes("input", (4, 16), 8, 0.021, -3.4)
        .codes("weight", (6, 16), 4, f.scales(6, 0.02, 0.1), axis=0)
        .plain("bias", f.draw.normal(6)),
        lambda y: covering(y, 8),
    )
    yield (
        "linear",
        "per_tensor_weight_quantized_bias",
        F.linear,
        {},
        lambda f: f.codes("input", (3, 12), 8, 0.03)
        .codes("weight", (5, 12), 8, 0.0123)
        .codes("bias", (5,), 16, 0.03 * 0.0123),
        lambda y: covering(y, 8, symmetric=True),
    )
    yield (
        "linear",
        "asymmetric_weight",
        F.linear,
        {},
        lambda f: f.codes("input", (2, 3, 8), 8, 0.02, 117.0).codes(
            "weight", (4, 8), 3, f.scales(4, 0.1, 0.3), f.draw.normal(4), axis=0
        ),
        lambda y: covering(y, 4),
    )
    yield (
        "linear",
        "no_output_quantizer",
        F.linear,
        {},
        lambda f: f.codes("input", (4, 16), 8, 0.021, 5.0).codes("weight", (6, 16), 8, f.scales(6), axis=0),
        None,
    )
    # The padding is zero as a number, not as a code.
    yield (
        "conv2d",
        "padding_of_asymmetric_input",
        F.conv2d,
        dict(padding=1),
        lambda f: f.codes("input", (1, 3, 5, 5), 8, 0.017, 41.3)
        .codes("weight", (4, 3, 3, 3), 8, f.scales(4), axis=0)
        .plain("bias", f.draw.normal(4)),
        lambda y: covering(y, 8),
    )
    yield (
        "conv2d",
        "depthwise_stride",
        F.conv2d,
        dict(stride=2, padding=[1, 0], groups=4),
        lambda f: f.codes("input", (2, 4, 6, 6), 8, 0.03).codes("weight", (4, 1, 3, 3), 4, f.scales(4), axis=0),
        lambda y: covering(y, 8, symmetric=True),
    )
    yield (
        "conv2d",
        "wide_input_dilation",
        F.conv2d,
        dict(dilation=2),
        lambda f: f.codes("input", (1, 2, 6, 7), 16, 1e-4, 1000.0).codes("weight", (3, 2, 2, 3), 2, 0.4, 0.0),
        lambda y: covering(y, 6),
    )
    yield (
        "matmul",
        "matrices",
        torch.matmul,
        {},
        lambda f: f.codes("input", (5, 8), 8, 0.02, 13.0).codes("other", (8, 4), 8, 0.03, -20.6),
        lambda y: covering(y, 8),
    )
    yield (
        "matmul",
        "batches",
        torch.matmul,
        {},
        lambda f: f.codes("input", (2, 3, 4, 6), 8, 0.02).codes("other", (3, 6, 2), 8, 0.03, 9.0),
        lambda y: covering(y, 8, symmetric=True),
    )
    yield (
        "add",
        "different_scales_broadcast",
        torch.add,
        {},
        lambda f: f.codes("input", (3, 6), 8, 0.02, 5.2).codes("other", (6,), 8, 0.11),
        lambda y: covering(y, 8),
    )
    yield (
        "add",
        "alpha_per_channel_output",
        torch.add,
        dict(alpha=2),
        lambda f: f.codes("input", (4, 6), 8, f.scales(4), f.draw.normal(4, scale=10.0), axis=0).codes(
            "other", (4, 6), 4, 0.3
        ),
        lambda y: covering(y, 6, axis=1),
    )
    # Every sum is a multiple of half a step: ties go to the even code, after the odd offset is taken away.
    yield (
        "add",
        "ties",
        torch.add,
        {},
        lambda f: f.codes("input", (6, 8), 4, 0.25).codes("other", (6, 8), 4, 0.5),
        lambda y: Grid(torch.tensor([0.5]), torch.tensor([1.0]), 4),
    )
    yield (
        "softmax",
        "last",
        F.softmax,
        dict(dim=-1),
        lambda f: f.codes("input", (4, 7), 8, 0.05, 3.0),
        lambda y: Grid(torch.tensor([1 / 256]), torch.tensor([128.0]), 8),
    )
    yield (
        "softmax",
        "first",
        F.softmax,
        dict(dim=0),
        lambda f: f.codes("input", (5, 2, 3), 8, 0.02),
        lambda y: covering(y, 4),
    )
    yield (
        "layer_norm",
        "quantized_weight",
        F.layer_norm,
        dict(normalized_shape=[10], eps=1e-5),
        lambda f: f.codes("input", (4, 10), 8, 0.04, -30.2)
        .codes("weight", (10,), 8, 0.01)
        .plain("bias", f.draw.normal(10)),
        lambda y: covering(y, 8),
    )
    yield (
        "layer_norm",
        "no_weight",
        F.layer_norm,
        dict(normalized_shape=[3, 4], eps=1e-5),
        lambda f: f.codes("input", (2, 3, 4), 8, 0.04),
        lambda y: covering(y, 8, symmetric=True),
    )
    yield (
        "embedding",
        "per_row_weight",
        F.embedding,
        {},
        lambda f: f.plain("input", torch.tensor([[0, 5], [2, 2]])).codes(
            "weight", (6, 4), 4, f.scales(6), f.draw.normal(6, scale=3.0), axis=0
        ),
        lambda y: covering(y, 8),
    )
    yield (
        "embedding",
        "no_output_quantizer",
        F.embedding,
        {},
        lambda f: f.plain("input", torch.tensor([1, 3, 0])).codes("weight", (4, 8), 8, 0.03),
        None,
    )


def write(folder):
    tensors, records = {}, []
    for op, name, run, attributes, operands, output in cases():
        identity = f"{op}/{name}"
        record = {"op": op, "id": identity, "operands": {}, "attributes": attributes}
        flow, exact, result, grid = draw_apart(identity, run, attributes, operands, output)

        def keep(part, tensor):
            tensors[f"{identity}/{part}"] = tensor.contiguous()
            return f"{identity}/{part}"

        def keep_grid(part, grid):
            offset = {} if grid.offset is None else {"offset": keep(f"{part}.offset", grid.offset)}
            return {**grid.describe(), "scale": keep(f"{part}.scale", grid.scale), **offset}

        for part, operand in flow.operands.items():
            if isinstance(operand, tuple):
                record["operands"][part] = {"codes": keep(f"{part}.codes", operand[0]), **keep_grid(part, operand[1])}
            else:
                record["operands"][part] = {"tensor": keep(part, operand)}
        record["float"] = keep("float", result)
        record["float_tolerance"] = (
            "exact" if op in ("add", "embedding") and "per_channel" not in name else "relative 4e-6"
        )
        if grid is not None:
            codes = grid.quantize(result)
            if not torch.equal(codes, grid.quantize(exact.float())):
                raise AssertionError(f"{identity}: the codes differ from those of an f64 run")
            record["output"] = {
                **keep_grid("output", grid),
                "codes": keep("output.codes", codes.int()),
                "values": keep("output.values", grid.dequantize(codes)),
            }
        records.append(record)
    save_file(tensors, folder / "quantized.safetensors")
    write_json(folder / "quantized.json", {"cases": records})


def draw_apart(identity, run, attributes, operands, output):
    """The first draw whose results keep their distance from ties."""
    for attempt in range(1000):
        flow = operands(Flow(Draw(f"quantized/{identity}/{attempt}")))
        result, exact = (
            run(
                **{
                    part: (
                        operand[1].dequantize(operand[0].float()).to(dtype)
                        if isinstance(operand, tuple)
                        else operand.to(dtype) if operand.is_floating_point() else operand
                    )
                    for part, operand in flow.operands.items()
                },
                **attributes,
            )
            for dtype in (torch.float32, torch.float64)
        )
        if output is None:
            return flow, exact, result, None
        grid = output(result)
        if identity == "add/ties" or grid.tie_margin(result) >= MARGIN:
            return flow, exact, result, grid
    raise AssertionError(f"{identity}: no draw without values near a tie")
