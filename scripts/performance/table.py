"""Prints our benches beside their limits and PyTorch's times: a table in Markdown."""

import argparse
import json
import pathlib

from benches import milliseconds, turns

TURNS = "in turns"
AFTER_COPY = "after a copy"

# What is done; our bench; the limit it is compared with; how many times the limit is the goal, or None; the same in PyTorch.
# A limit is a bench, or several times one, or what was measured in turns with the work. PyTorch's work is repeated with
# nothing between, and so is ours where it is compared with PyTorch, unless the row says that a copy comes before each.
ROWS = [
    ("fake-quantize 4096x4096, per tensor", "ratios/fake_quantize/Tensor", TURNS, 1.25, "fake_quantize/tensor"),
    ("per channel, rows", "ratios/fake_quantize/Rows", TURNS, 1.25, "fake_quantize/rows"),
    ("per channel, columns", "ratios/fake_quantize/Columns", TURNS, 1.25, "fake_quantize/columns"),
    ("per block of 32", "ratios/fake_quantize/Block32", TURNS, 1.3, None),
    ("per block of 128", "ratios/fake_quantize/Block128", TURNS, 1.3, None),
    ("quantize to int8, per tensor", "ratios/quantize_i8/Tensor", TURNS, None, "quantize_i8/tensor"),
    ("the same, a copy before each", "ratios/quantize_i8/Tensor", TURNS, None, f"quantize_i8/tensor/{AFTER_COPY}"),
    ("per channel, rows", "ratios/quantize_i8/Rows", TURNS, None, "quantize_i8/tensor"),
    ("quantize to packed int4, per channel", "ratios/quantize_int4/Rows", TURNS, None, "quantize_i8/tensor"),
    ("the same, a copy before each", "ratios/quantize_int4/Rows", TURNS, None, f"quantize_i8/tensor/{AFTER_COPY}"),
    ("forward and backward, learned scale", "ratios/forward_backward/Rows", TURNS, 1.6, "forward_backward/rows"),
    ("min-max of 32 batches [8, 512, 1024]", "ratios/min_max/tensor", TURNS, 1.1, "min_max/tensor"),
    ("the same per channel, last axis", "ratios/min_max/last_axis", TURNS, 1.3, "min_max/last_axis"),
    ("min-error grid, 100 candidates, symmetric", "kernels/min_error_grid/(Rows, true)", None, None, "min_error_grid/rows"),
    ("min-error grid, asymmetric", "kernels/min_error_grid/(Rows, false)", None, None, "min_error_grid/rows"),
    ("20 rules on 100,000 modules: matching", "resolve/match_20_rules/100000", "resolve/bare_walk/100000", 5.0, None),
    ("the same by all threads", "resolve/match_20_rules_in_parts/100000", "resolve/bare_walk/100000", 5.0, None),
    ("resolving, with a record per slot", "resolve/resolve_20_rules/100000", "resolve/bare_walk/100000", None, None),
    ("Hessian, 4096 inputs, 16,384 samples", "gptq/hessian/(4096, 16384)", "16 * gptq/gemm_limit/2048", 1.3, None),
    ("Hessian, 4096 inputs, 65,536 samples", "gptq/hessian_once/(4096, 65536)", "64 * gptq/gemm_limit/2048", 1.3, None),
    ("factor of the Hessian, 4096", "gptq/factor/4096", None, None, "factor/4096"),
    ("GPTQ update 4096x4096, per channel", "gptq/update_plain/(4096, Channel)", "4 * gptq/gemm_limit/2048", 1.3, None),
    ("with the guard of nearest rounding", "gptq/update_guarded/(4096, Channel)", "4 * gptq/gemm_limit/2048", None, None),
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
    ours, limits, repeated = {}, {}, {}
    for path in sorted(arguments.folder.glob(f"*.{arguments.threads}.txt")):
        ours |= milliseconds(path)
        for name, (time, limit, ratio, again) in turns(path).items():
            ours[name], limits[name], repeated[name] = time, (limit, ratio), again
    torch = {}
    for path in sorted(arguments.folder.glob(f"pytorch-*.{arguments.threads}.json")):
        torch |= json.loads(path.read_text())["milliseconds"]

    def limit_of(limit):
        factor, _, name = limit.rpartition(" * ")
        time = ours.get(name)
        return time and float(factor or 1) * time

    print(f"\nthreads: {arguments.threads}\n")
    print("| work | ms | limit ms | of the limit | goal | ms as PyTorch | PyTorch ms | PyTorch takes |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for work, bench, limit, goal, peer in ROWS:
        time = ours.get(bench)
        if time is None:
            print(f"| {work} | not measured: no bench `{bench}` | | | | | | |")
            continue
        if limit == TURNS:
            limit, ratio = limits[bench]
        else:
            limit = limit_of(limit) if limit else None
            ratio = time / limit if limit else None
        ratio = f"{ratio:.2f}x" if ratio else ""
        again = time if peer and peer.endswith(AFTER_COPY) else repeated.get(bench, time)
        peer = torch.get(peer) if peer else None
        print(
            f"| {work} | {time:.2f} | {f'{limit:.2f}' if limit else ''} | {ratio} | {f'{goal}x' if goal else ''}"
            f" | {f'{again:.2f}' if peer else ''} | {f'{peer:.2f}' if peer else ''}"
            f" | {f'{peer / again:.2f}x' if peer else ''} |"
        )


if __name__ == "__main__":
    main()
