"""Prints our benches beside their limits and PyTorch's times: a table in Markdown."""

import argparse
import json
import pathlib

from divan import milliseconds

# What is done; our bench; the limit it is compared with; how many times the limit is the goal, or None; the same in PyTorch.
# A limit is a bench, or several times one: what a copy of 64 MiB takes is "2 * kernels/copy_f32".
ROWS = [
    ("fake-quantize 4096x4096, per tensor", "kernels/fake_quantize_f32/Tensor", "kernels/copy_f32", 1.25, "fake_quantize/tensor"),
    ("per channel, rows", "kernels/fake_quantize_f32/Rows", "kernels/copy_f32", 1.25, "fake_quantize/rows"),
    ("per channel, columns", "kernels/fake_quantize_f32/Columns", "kernels/copy_f32", 1.25, "fake_quantize/columns"),
    ("per block of 32", "kernels/fake_quantize_f32/Block32", "kernels/copy_f32", 1.3, None),
    ("per block of 128", "kernels/fake_quantize_f32/Block128", "kernels/copy_f32", 1.3, None),
    ("quantize to int8, per tensor", "kernels/quantize_i8/Tensor", "kernels/read_f32", None, "quantize_i8/tensor"),
    ("per channel, rows", "kernels/quantize_i8/Rows", "kernels/read_f32", None, "quantize_i8/tensor"),
    ("quantize to packed int4, per channel", "kernels/quantize_int4/Rows", "kernels/read_f32", None, "quantize_i8/tensor"),
    ("forward and backward, learned scale", "kernels/forward_backward/Rows", "2.5 * kernels/copy_f32", 1.6, "forward_backward/rows"),
    ("min-max of 32 batches [8, 512, 1024]", "kernels/batches_min_max/false", "kernels/batches_read", 1.1, "min_max/tensor"),
    ("the same per channel, last axis", "kernels/batches_min_max/true", "kernels/batches_read", 1.3, "min_max/last_axis"),
    ("min-error grid, 100 candidates, symmetric", "kernels/min_error_grid/(Rows, true)", None, None, "min_error_grid/rows"),
    ("min-error grid, asymmetric", "kernels/min_error_grid/(Rows, false)", None, None, "min_error_grid/rows"),
    ("20 rules on 100,000 modules: matching", "resolve/match_20_rules/100000", "resolve/bare_walk/100000", 5.0, None),
    ("resolving, with a record per slot", "resolve/resolve_20_rules/100000", "resolve/bare_walk/100000", None, None),
    ("Hessian, 4096 inputs, 16,384 samples", "gptq/hessian/(4096, 16384)", "16 * gptq/gemm_limit/2048", 1.3, None),
    ("factor of the Hessian, 4096", "gptq/factor/4096", None, None, "factor/4096"),
    ("GPTQ update 4096x4096, per channel", "gptq/update_plain/(4096, Channel)", "4 * gptq/gemm_limit/2048", 1.3, None),
    ("encoder, float forward", "encoder/float", "encoder/products", None, "encoder/float"),
    ("encoder, simulated W8A8 forward", "encoder/simulated", "encoder/float", 1.15, None),
    ("encoder, integer forward", "encoder/integer", "encoder/float", 0.7, None),
    ("encoder, calibration of 16 batches", "encoder/batches/calibration", "encoder/batches/float", 1.1, None),
]


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("folder", type=pathlib.Path)
    arguments = arguments.parse_args()
    ours = {}
    for path in sorted(arguments.folder.glob(f"*.{arguments.threads}.txt")):
        ours |= milliseconds(path)
    torch = {}
    path = arguments.folder / f"pytorch.{arguments.threads}.json"
    if path.exists():
        torch = json.loads(path.read_text())["milliseconds"]

    def limit_of(limit):
        factor, _, name = limit.rpartition(" * ")
        time = ours.get(name)
        return time and float(factor or 1) * time

    print(f"\nthreads: {arguments.threads}\n")
    print("| work | ms | limit ms | of the limit | goal | PyTorch ms | PyTorch takes |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for work, bench, limit, goal, peer in ROWS:
        time = ours.get(bench)
        if time is None:
            print(f"| {work} | not measured: no bench `{bench}` | | | | | |")
            continue
        limit = limit_of(limit) if limit else None
        ratio = f"{time / limit:.2f}x" if limit else ""
        peer = torch.get(peer) if peer else None
        print(
            f"| {work} | {time:.2f} | {f'{limit:.2f}' if limit else ''} | {ratio} | {f'{goal}x' if goal else ''}"
            f" | {f'{peer:.2f}' if peer else ''} | {f'{peer / time:.1f}x' if peer else ''} |"
        )


if __name__ == "__main__":
    main()
