"""The affine quantizer in plain PyTorch: codes, values and the gradients of a learned scale and offset (spec §4)."""

from dataclasses import dataclass

import torch


@dataclass
class Grid:
    """Where codes lie on the real line: one scale, and one offset or none, for all elements or per index of an axis."""

    scale: torch.Tensor  # [parameters]
    offset: torch.Tensor | None  # [parameters], rounded where it is used
    num_bits: int
    axis: int | None = None

    def describe(self):
        granularity = {"kind": "per_tensor"} if self.axis is None else {"kind": "per_channel", "axes": [self.axis]}
        return {"num_bits": self.num_bits, "granularity": granularity}

    def bounds(self):
        return -(2 ** (self.num_bits - 1)), 2 ** (self.num_bits - 1) - 1

    def along(self, parameter, rank):
        """A parameter vector in a shape that broadcasts over data of this rank."""
        shape = [1] * rank
        if self.axis is not None:
            shape[self.axis] = -1
        return parameter.reshape(shape)

    def rounded_offset(self, rank):
        offset = torch.zeros_like(self.scale) if self.offset is None else self.offset
        return self.along(offset.round(), rank)

    def position(self, x):
        """x / s - round(o): where x lies in steps, before rounding to the code."""
        return x / self.along(self.scale, x.dim()) - self.rounded_offset(x.dim())

    def quantize(self, x):
        return self.position(x).round().clamp(*self.bounds())

    def dequantize(self, codes):
        return (codes + self.rounded_offset(codes.dim())) * self.along(self.scale, codes.dim())

    def tie_margin(self, x):
        """How far the nearest element is from the border between two codes, in steps."""
        position = self.position(x)
        low, high = self.bounds()
        inside = position[(position > low - 1) & (position < high + 1)]
        return 1.0 if inside.numel() == 0 else (inside - inside.floor() - 0.5).abs().min().item()


class FakeQuantize(torch.autograd.Function):
    """Quantize and dequantize; straight-through gradients inside the range, learned scale and offset (spec §4.5).

    `factor` multiplies the gradient of the scale (LSQ's 1 / sqrt(N * Qp), Esser et al. 2020, or 1).
    """

    @staticmethod
    def forward(ctx, x, scale, offset, num_bits, axis, factor):
        grid = Grid(scale, offset, num_bits, axis)
        ctx.save_for_backward(x)
        ctx.grid, ctx.factor = grid, factor
        return grid.dequantize(grid.quantize(x))

    @staticmethod
    def backward(ctx, upstream):
        (x,) = ctx.saved_tensors
        grid = ctx.grid
        low, high = grid.bounds()
        position = grid.position(x)
        code = position.round()
        clipped = (code < low) | (code > high)
        bound = torch.where(code < low, low, high) + grid.rounded_offset(x.dim())
        others = [axis for axis in range(x.dim()) if axis != grid.axis]
        total = lambda terms: terms.sum(dim=others).reshape(grid.scale.shape)
        scale = total(upstream * torch.where(clipped, bound, code - position)) * ctx.factor
        offset = None
        if grid.offset is not None:
            offset = total(torch.where(clipped, upstream * grid.along(grid.scale, x.dim()), 0.0))
        return torch.where(clipped, 0.0, upstream), scale, offset, None, None, None


def check_against_worked_example():
    """The example of spec §4.5, so that this file cannot drift from it."""
    x = torch.tensor([-10.0, 0.3, 0.9, 10.0], requires_grad=True)
    scale, offset = torch.tensor([0.5], requires_grad=True), torch.tensor([0.2], requires_grad=True)
    FakeQuantize.apply(x, scale, offset, 3, None, 1.0).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]
    assert abs(scale.grad.item() + 0.4) < 1e-6 and offset.grad.item() == 1.0
