#!/usr/bin/env python3
"""Makes conformance/operators: what PyTorch computes for every operator of the library, with gradients.

Three sets are written (conformance/operators/README.md describes them):

- `cases.json` and one `<group>.safetensors` per group: operators on float and integer tensors;
- `quantized.json`, `quantized.safetensors`: dequantize, float operator, quantize;
- `training.json`, `training.safetensors`: a linear layer with learned scales, its gradients and three AdamW steps.

    python3 scripts/make_operator_values.py                 # writes conformance/operators
    python3 scripts/make_operator_values.py --out DIR       # writes elsewhere, to compare
    python3 scripts/make_operator_values.py --verbose       # and says how much of each tolerance PyTorch itself uses

Operands come from seeds made of the case's name, so a new case changes no other. Every result and gradient is checked
before it is stored: the same computation in f64, rounded once, must agree within the tolerance that the case states.

Needs torch, numpy and safetensors; the kept files were made with torch 2.15.0, numpy 2.4.6 and safetensors 0.8.0.
Runs on the CPU with one thread.
"""

import argparse
import sys
from pathlib import Path

sys.dont_write_bytecode = True  # no __pycache__ in the repository

from operator_values import GROUPS, quantized, training
from operator_values.record import Recorder

# The operators a quantized model may call, in the order of the operator table.
TABLE = """
linear conv1d conv2d conv3d softmax relu sigmoid conv_transpose1d conv_transpose2d conv_transpose3d
avg_pool1d avg_pool2d avg_pool3d embedding layer_norm matmul mm bmm add sub mul div floor_divide remainder
bitwise_left_shift bitwise_right_shift pow sum bitwise_not negative positive bitwise_and bitwise_or bitwise_xor
silu gelu dropout permute cat index_add cumsum pad max_pool2d interpolate unfold ones_like zeros_like empty_like
full_like exp sin cos rms_norm
""".split()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parent.parent / "conformance" / "operators"
    parser.add_argument("--out", type=Path, default=default, help="folder to write to (default: conformance/operators)")
    parser.add_argument("--verbose", action="store_true", help="print the share of its tolerance that each case uses")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    recorder = Recorder()
    for name, group in GROUPS.items():
        recorder.begin_group(name)
        group.record(recorder)
    problems = list(recorder.problems)
    missing = [op for op in TABLE if op not in recorder.operators()]
    if missing:
        problems.append(f"no case for {', '.join(missing)}")
    if problems:
        print("\n".join(f"error: {problem}" for problem in problems), file=sys.stderr)
        return 1
    recorder.write(args.out)
    quantized.write(args.out)
    training.write(args.out)
    if args.verbose:
        recorder.print_margins()
    print(f"{len(recorder.cases)} cases of {len(recorder.operators())} operators in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
