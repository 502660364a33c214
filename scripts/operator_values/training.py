"""A linear layer with learned scales: gradients and three optimizer steps.

    loss = mean((fq(x) fq(W)^T + b - target)^2)

with one scale and offset for x and one scale per row of W; once with plain gradients, once with LSQ's factor.
"""

import math

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from .affine import FakeQuantize, Grid, check_against_worked_example
from .record import Draw, share, write_json

BATCH, INPUTS, OUTPUTS, STEPS = 6, 8, 4, 3
WEIGHT_BITS, INPUT_BITS = 3, 4
OPTIMIZER = {"lr": 0.02, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}
GRADIENT_TOLERANCE = "relative 4e-6"
PARAMETER_TOLERANCE = "relative 4e-6"
MARGIN = 1e-3  # steps between any element and a border between codes, at every step of the training


def write(folder):
    check_against_worked_example()
    tensors, records = {}, []
    for lsq in (False, True):
        name = "lsq" if lsq else "plain"
        initial, batches, trace = train_apart(name, lsq)

        def keep(part, tensor):
            tensors[f"{name}/{part}"] = tensor.detach().contiguous()
            return f"{name}/{part}"

        weight_factor, input_factor = factors(lsq)
        records.append(
            {
                "id": name,
                "weight_quantizer": {
                    "num_bits": WEIGHT_BITS,
                    "granularity": {"kind": "per_channel", "axes": [0]},
                    "elements_per_scale": INPUTS,
                    "scale_gradient_factor": weight_factor,
                },
                "input_quantizer": {
                    "num_bits": INPUT_BITS,
                    "granularity": {"kind": "per_tensor"},
                    "elements_per_scale": BATCH * INPUTS,
                    "scale_gradient_factor": input_factor,
                },
                "optimizer": {"name": "AdamW", **OPTIMIZER},
                "initial": {part: keep(f"initial/{part}", value) for part, value in initial.items()},
                "steps": [
                    {
                        "input": keep(f"{i}/input", batches[i][0]),
                        "target": keep(f"{i}/target", batches[i][1]),
                        "output": keep(f"{i}/output", step["output"]),
                        "loss": keep(f"{i}/loss", step["loss"]),
                        "gradients": {
                            part: keep(f"{i}/gradient/{part}", value) for part, value in step["gradients"].items()
                        },
                        "after": {part: keep(f"{i}/after/{part}", value) for part, value in step["after"].items()},
                    }
                    for i, step in enumerate(trace)
                ],
                "gradient_tolerance": GRADIENT_TOLERANCE,
                "parameter_tolerance": PARAMETER_TOLERANCE,
            }
        )
    save_file(tensors, folder / "training.safetensors")
    write_json(folder / "training.json", {"cases": records})


def factors(lsq):
    """1 / sqrt(N * Qp) for the weights and the input: N elements share the scale, Qp is the largest code."""
    of = lambda elements, num_bits: 1 / math.sqrt(elements * (2 ** (num_bits - 1) - 1)) if lsq else 1.0
    return of(INPUTS, WEIGHT_BITS), of(BATCH * INPUTS, INPUT_BITS)


def train_apart(name, lsq):
    """The first draw that trains without coming near a tie, and that agrees with the same training in f64."""
    for attempt in range(10000):
        draw = Draw(f"training/{name}/{attempt}")
        initial = {
            "weight": draw.normal(OUTPUTS, INPUTS).float(),
            "bias": draw.normal(OUTPUTS).float(),
            "weight_scale": draw.uniform(OUTPUTS, low=0.25, high=0.6).float(),
            "input_scale": draw.uniform(1, low=0.15, high=0.25).float(),
            "input_offset": draw.uniform(1, low=-2.4, high=2.4).float(),
        }
        batches = [(draw.normal(BATCH, INPUTS).float(), draw.normal(BATCH, OUTPUTS).float()) for _ in range(STEPS)]
        trace = train(initial, batches, lsq, torch.float32)
        exact = train(initial, batches, lsq, torch.float64)
        if trace is None or exact is None:
            continue
        for i, (step, want) in enumerate(zip(trace, exact)):
            for kind, tolerance in (("gradients", GRADIENT_TOLERANCE), ("after", PARAMETER_TOLERANCE)):
                for part, value in step[kind].items():
                    used = share(value, want[kind][part].float(), tolerance)
                    if not used <= 0.5:
                        raise AssertionError(f"{name}: step {i}, {kind} of {part} uses {used:.3g} of `{tolerance}`")
        return initial, batches, trace
    raise AssertionError(f"{name}: no draw without values near a tie")


def train(initial, batches, lsq, dtype):
    """What each step computes, or None if some element lies near a tie."""
    parameters = {part: torch.nn.Parameter(value.to(dtype, copy=True)) for part, value in initial.items()}
    optimizer = torch.optim.AdamW(parameters.values(), **{**OPTIMIZER, "betas": tuple(OPTIMIZER["betas"])})
    weight_factor, input_factor = factors(lsq)
    p, trace = parameters, []
    for x, target in batches:
        x = x.to(dtype, copy=True).requires_grad_()
        with torch.no_grad():
            grids = (
                (Grid(p["input_scale"], p["input_offset"], INPUT_BITS), x),
                (Grid(p["weight_scale"], None, WEIGHT_BITS, 0), p["weight"]),
            )
            offset_margin = (p["input_offset"] - p["input_offset"].floor() - 0.5).abs().item()
            if min(offset_margin, *(grid.tie_margin(data) for grid, data in grids)) < MARGIN:
                return None
        quantized_input = FakeQuantize.apply(x, p["input_scale"], p["input_offset"], INPUT_BITS, None, input_factor)
        quantized_weight = FakeQuantize.apply(p["weight"], p["weight_scale"], None, WEIGHT_BITS, 0, weight_factor)
        output = F.linear(quantized_input, quantized_weight, p["bias"])
        loss = (output - target.to(dtype)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        gradients = {"input": x.grad.clone(), **{part: value.grad.clone() for part, value in p.items()}}
        optimizer.step()
        trace.append(
            {
                "output": output.detach(),
                "loss": loss.detach().reshape(1),
                "gradients": gradients,
                "after": {part: value.detach().clone() for part, value in p.items()},
            }
        )
    return trace
