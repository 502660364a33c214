"""Times in PyTorch the work that our benches do, and prints {name: milliseconds} as JSON.

The median of several runs after a warm-up, wall time. PyTorch returns large blocks to the system, so that each fresh
output is paged in again; where it can write into a given tensor, it is given one.
"""

import argparse
import json
import statistics
import sys
import time

import numpy as np
import torch

N = 4096
TIMES = {}


def timed(name, work, runs=7, warm=2, before=lambda: None):
    """Adds the median time of `work()`, each after `before()`."""
    for _ in range(warm):
        work()
    seconds = []
    for _ in range(runs):
        before()
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    TIMES[name] = statistics.median(seconds) * 1e3
    print(f"{name:40} {TIMES[name]:10.2f} ms", file=sys.stderr)


def elementwise():
    x = torch.randn(N, N)
    out = torch.empty_like(x)
    timed("copy", lambda: out.copy_(x))
    scale, zero = torch.full((N,), 0.02), torch.zeros(N, dtype=torch.int32)
    timed("fake_quantize/tensor", lambda: torch.fake_quantize_per_tensor_affine(x, 0.02, 3, -128, 127))
    for axis, name in ((0, "rows"), (1, "columns")):
        timed(
            f"fake_quantize/{name}",
            lambda axis=axis: torch.fake_quantize_per_channel_affine(x, scale, zero, axis, -128, 127),
        )
    def quantize():
        return torch.quantize_per_tensor(x, 0.02, 3, torch.qint8)

    # Warm runs teach the heap to keep the pages of the output.
    timed("quantize_i8/tensor", quantize, runs=21, warm=21)
    # The copy is that of the C library, as in our benches.
    source, target = x.numpy(), out.numpy()
    timed("quantize_i8/tensor/after a copy", quantize, runs=21, before=lambda: np.copyto(target, source))

    learned = [
        x.clone().requires_grad_(),
        scale.clone().requires_grad_(),
        torch.zeros(N).requires_grad_(),
    ]
    g = torch.ones_like(x)

    def forward_backward():
        for tensor in learned:
            tensor.grad = None
        y = torch._fake_quantize_learnable_per_channel_affine(*learned, 0, -128, 127, 1.0)
        y.backward(g)

    timed("forward_backward/rows", forward_backward, runs=5, warm=1)


def ranges():
    x = torch.randn(N, N)
    batches = [torch.randn(8, 512, 1024) for _ in range(32)]
    timed("min_max/tensor", lambda: [torch.aminmax(b) for b in batches], runs=3, warm=1)
    timed(
        "min_max/last_axis",
        lambda: [(b.amin((0, 1)), b.amax((0, 1))) for b in batches],
        runs=3,
        warm=1,
    )
    top = x.abs().amax(1)
    zero = torch.zeros(N, dtype=torch.int32)

    def grid():
        best = torch.full((N,), torch.inf)
        for i in range(1, 101):
            scale = top * (i / 100 / 7)
            y = torch.fake_quantize_per_channel_affine(x, scale, zero, 0, -8, 7)
            best = torch.minimum(best, y.sub_(x).square_().sum(1))

    timed("min_error_grid/rows", grid, runs=1, warm=0)


def gptq():
    for n, batches in ((1024, 32), (2048, 16), (4096, 8)):
        xs = [torch.randn(512, n) for _ in range(batches)]
        h = torch.zeros(n, n)

        def hessian():
            for x in xs:
                h.addmm_(x.T, x)

        timed(f"hessian/{n}", hessian, runs=3, warm=1)
        damped = h + h.diagonal().mean() * 0.01 * torch.eye(n)

        def factor():
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
            torch.linalg.cholesky(inverse, upper=True)

        timed(f"factor/{n}", factor, runs=3, warm=1)
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    timed("matmul/2048", lambda: a @ b, runs=5)


def encoder():
    """Four pre-norm layers, 256 wide, 4 heads, 1024 inside, 128 long, batch 8: in float."""
    layer = torch.nn.TransformerEncoderLayer(
        256, 4, 1024, dropout=0.0, activation="relu", batch_first=True, norm_first=True
    )
    model = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).eval()
    x = torch.randn(8, 128, 256)
    with torch.inference_mode():
        timed("encoder/float", lambda: model(x), runs=15)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parts = {"elementwise": elementwise, "ranges": ranges, "gptq": gptq, "encoder": encoder}
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(parts)}; all, if none is named")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(parts):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    threads = arguments.threads
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    for part in arguments.parts or parts:
        with torch.set_grad_enabled(part == "elementwise"):
            parts[part]()
    json.dump({"torch": torch.__version__, "threads": threads, "milliseconds": TIMES}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
