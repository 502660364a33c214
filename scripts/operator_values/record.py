"""Runs an operator in PyTorch, checks what it gives against f64, and keeps operands, result and gradients."""

import json
import math
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy
import torch
from safetensors.torch import save_file

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
warnings.filterwarnings("ignore", message="Using padding='same'")  # it only tells what that costs

DTYPES = {
    "f32": torch.float32,
    "f64": torch.float64,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "u8": torch.uint8,
}
FLOATS = ("f32", "f64", "f16", "bf16")
NAMES = {dtype: name for name, dtype in DTYPES.items()}

# Tolerances by dtype. `relative` is meant relative to the largest magnitude in the tensor.
SUMS = {"f32": "relative 2e-6", "f64": "relative 1e-14", "f16": "relative 1e-3", "bf16": "relative 8e-3"}
GRADIENTS = {"f32": "relative 4e-6", "f64": "relative 1e-14", "f16": "relative 3e-3", "bf16": "relative 2.4e-2"}
FUNCTIONS = {"f32": "ulp 4", "f64": "ulp 4", "f16": "ulp 1", "bf16": "ulp 1"}


class Draw:
    """Random operands of one case, from a generator whose stream NumPy keeps frozen."""

    def __init__(self, name: str):
        self.stream = numpy.random.RandomState(zlib.crc32(name.encode()))

    def normal(self, *shape, scale=1.0):
        """Normally distributed, in the dtype of the case."""
        return torch.from_numpy(numpy.asarray(self.stream.standard_normal(shape) * scale))

    def uniform(self, *shape, low=0.0, high=1.0):
        """Uniform between the two, in the dtype of the case."""
        return torch.from_numpy(numpy.asarray(self.stream.uniform(low, high, shape)))

    def steps(self, *shape, step=0.25, low=-8, high=9):
        """Multiples of a step, exact in every dtype: many equal ones."""
        return torch.from_numpy(self.stream.randint(low, high, shape) * step)

    def integers(self, *shape, low=0, high=10, dtype="i64"):
        """Integers of this dtype, whatever the dtype of the case."""
        return torch.from_numpy(numpy.asarray(self.stream.randint(low, high, shape))).to(DTYPES[dtype])


def values(*numbers):
    """A vector of these numbers, in the dtype of the case."""
    return torch.tensor(numbers, dtype=torch.float64)


def integers(*numbers, dtype="i64"):
    """A vector of these integers in this dtype."""
    return torch.tensor(numbers, dtype=DTYPES[dtype])


@dataclass
class Recorder:
    """Collects cases and their tensors, group by group."""

    cases: list = field(default_factory=list)
    tensors: dict = field(default_factory=dict)
    margins: dict = field(default_factory=dict)
    problems: list = field(default_factory=list)
    group: str = ""

    def begin_group(self, name):
        self.group = name
        self.tensors[name] = {}

    def operators(self):
        return list(dict.fromkeys(case["op"] for case in self.cases))

    def add(
        self,
        op,
        name,
        run,
        operands,
        attributes=None,
        *,
        dtypes=("f32",),
        tolerance=SUMS,
        gradient_tolerance=GRADIENTS,
        gradient=True,
        constants=(),
        mixed=False,
        updated=(),
        checked=True,
    ):
        """Records `run(**operands, **attributes)` for each dtype.

        `operands` is a function of a `Draw`; f64 tensors in it take the dtype of the case (unless `mixed`), others keep
        theirs; a list of tensors is a sequence operand. `constants` names float operands without gradient; `updated`
        operands that the operator changes in place and whose new value is stored too. Without
        `checked` nothing is compared with f64, for results that depend on the dtype.
        """
        attributes = attributes or {}
        for dtype in dtypes:
            identity = f"{op}/{name}" if len(dtypes) == 1 else f"{op}/{name}/{dtype}"
            given = operands(Draw(f"{op}/{name}"))
            given = {key: value if mixed else cast(value, dtype) for key, value in given.items()}
            try:
                self._case(
                    identity,
                    op,
                    run,
                    given,
                    attributes,
                    gradient,
                    constants,
                    updated,
                    pick(tolerance, dtype),
                    pick(gradient_tolerance, dtype),
                    checked,
                )
            except (RuntimeError, TypeError, ValueError) as error:
                self.problems.append(f"{identity}: {error}")

    def _case(
        self,
        identity,
        op,
        run,
        operands,
        attributes,
        gradient,
        constants,
        updated,
        tolerance,
        gradient_tolerance,
        checked,
    ):
        if any(case["id"] == identity for case in self.cases):
            raise ValueError(f"two cases are named {identity}")
        with_gradient = gradient and any(tensor.is_floating_point() for _, tensor in flat(operands))
        upstream = None
        if with_gradient:
            shape = evaluate(run, operands, attributes, (), (), None)["result"].shape
            upstream = Draw(identity + "/upstream").normal(*shape)
        outcome = evaluate(run, operands, attributes, constants, updated, upstream)
        if checked:
            double = {key: cast(value, "f64") if is_float(value) else value for key, value in operands.items()}
            exact = evaluate(
                run,
                double,
                attributes,
                constants,
                updated,
                outcome.get("upstream", torch.zeros(())).double() if with_gradient else None,
            )
            for part, want in exact.items():
                if part == "upstream":
                    continue
                stated = gradient_tolerance if part.startswith("gradient/") else tolerance
                self._check(identity, part, outcome[part], want.to(outcome[part].dtype), stated)

        case = {"op": op, "id": identity, "group": self.group}
        keys = lambda part, value: (
            [self._keep(identity, f"{part}.{i}", v) for i, v in enumerate(value)]
            if isinstance(value, list)
            else self._keep(identity, part, value)
        )
        case["operands"] = {part: keys(part, value) for part, value in operands.items()}
        case["attributes"] = attributes
        case["result"] = self._keep(identity, "result", outcome["result"])
        case["tolerance"] = tolerance
        if updated:
            case["updated"] = {
                part: self._keep(identity, f"updated/{part}", outcome[f"updated/{part}"]) for part in updated
            }
        if with_gradient:
            case["upstream"] = self._keep(identity, "upstream", outcome["upstream"])
            case["gradients"] = {}
            for part, value in operands.items():
                if f"gradient/{part}" in outcome:
                    case["gradients"][part] = self._keep(identity, f"gradient/{part}", outcome[f"gradient/{part}"])
                elif isinstance(value, list) and f"gradient/{part}.0" in outcome:
                    case["gradients"][part] = [
                        self._keep(identity, f"gradient/{part}.{i}", outcome[f"gradient/{part}.{i}"])
                        for i in range(len(value))
                    ]
            case["gradient_tolerance"] = gradient_tolerance
        self.cases.append(case)

    def _keep(self, identity, part, tensor):
        key = f"{identity}/{part}"
        tensor = tensor.detach().clone().contiguous()
        self.tensors[self.group][key] = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor
        return key

    def _check(self, identity, part, got, want, tolerance):
        used = share(got, want, tolerance)
        self.margins[f"{identity}/{part}"] = (used, tolerance)
        if not used <= 1:
            self.problems.append(
                f"{identity}: {part} uses {used:.3g} of `{tolerance}`: {got.tolist()}, in f64 {want.tolist()}"
            )

    def write(self, folder: Path):
        for group, tensors in self.tensors.items():
            save_file(tensors, folder / f"{group}.safetensors")
        write_json(folder / "cases.json", {"cases": self.cases})

    def print_margins(self):
        for name, (used, tolerance) in sorted(self.margins.items(), key=lambda item: -item[1][0]):
            print(f"{used:8.3f}  {tolerance:<16} {name}")


def write_json(path: Path, content: dict):
    """One line per case, after the versions that made them."""
    cases = content.pop("cases")
    head = {"made_with": {"torch": torch.__version__.split("+")[0], "numpy": numpy.__version__}, **content}
    lines = ",\n".join(json.dumps(case, allow_nan=False) for case in cases)
    path.write_text(json.dumps(head, allow_nan=False)[:-1] + ', "cases": [\n' + lines + "\n]}\n")


def evaluate(run, operands, attributes, constants, updated, upstream):
    """The result, and with an upstream gradient the gradient of every float operand."""
    inputs = {}
    for key, value in operands.items():
        copies = [v.clone() for v in value] if isinstance(value, list) else value.clone()
        if upstream is not None and key not in constants and key not in updated:
            for tensor in copies if isinstance(copies, list) else [copies]:
                tensor.requires_grad_(tensor.is_floating_point())
        inputs[key] = copies
    result = run(**inputs, **python_attributes(attributes))
    outcome = {"result": result.detach()}
    if upstream is not None:
        outcome["upstream"] = upstream.to(result.dtype)
        result.backward(outcome["upstream"])
        for part, tensor in flat(inputs):
            if tensor.requires_grad:
                gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
                outcome[f"gradient/{part}"] = gradient.to_dense()
    for part in updated:
        outcome[f"updated/{part}"] = inputs[part].detach()
    return outcome


def python_attributes(attributes):
    """What JSON can only spell: dtypes and the numbers it lacks."""
    spelled = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
    return {
        key: DTYPES[value] if key == "dtype" else spelled.get(value, value) if isinstance(value, str) else value
        for key, value in attributes.items()
    }


def share(got, want, tolerance):
    """How much of the tolerance the difference uses; more than 1 is a failure."""
    if got.dtype != want.dtype or got.shape != want.shape:
        return math.inf
    if tolerance == "shape":
        return 0.0
    if not got.is_floating_point():
        return 0.0 if torch.equal(got, want) else math.inf
    finite = want.isfinite()
    if (
        not torch.equal(got[~finite].nan_to_num(123.0), want[~finite].nan_to_num(123.0))
        or not got[finite].isfinite().all()
    ):
        return math.inf
    if finite.sum() == 0:
        return 0.0
    got, want = got[finite], want[finite]
    kind, _, bound = tolerance.partition(" ")
    if kind == "bits":
        return 0.0 if torch.equal(got, want) and torch.equal(got.signbit(), want.signbit()) else math.inf
    if kind == "exact":
        return 0.0 if torch.equal(got, want) else math.inf
    if kind == "ulp":
        return (ordinal(got) - ordinal(want)).abs().max().item() / float(bound)
    if kind == "relative":
        difference = (got.double() - want.double()).abs().max().item()
        return 0.0 if difference == 0 else difference / (float(bound) * want.double().abs().max().item() or math.nan)
    raise ValueError(f"unknown tolerance {tolerance}")


def ordinal(tensor):
    """Consecutive integers for consecutive floats; both zeros are 0."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    bits = tensor.contiguous().view(integer).long()
    lowest = -(2 ** (8 * tensor.element_size() - 1))
    return torch.where(bits < 0, lowest - bits, bits)


def flat(operands):
    for key, value in operands.items():
        if isinstance(value, list):
            yield from ((f"{key}.{i}", tensor) for i, tensor in enumerate(value))
        else:
            yield key, value


def is_float(value):
    return value[0].is_floating_point() if isinstance(value, list) else value.is_floating_point()


def cast(value, dtype):
    if isinstance(value, list):
        return [cast(v, dtype) for v in value]
    return value.to(DTYPES[dtype]) if value.is_floating_point() else value


def pick(tolerance, dtype):
    return tolerance if isinstance(tolerance, str) else tolerance[dtype]
