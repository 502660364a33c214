#!/usr/bin/env python3
"""Runs an exported QDQ file in onnxruntime and compares it with the predictions of `fastforward evaluate`.

The file under test is executed twice, with onnxruntime's graph optimizations enabled (integer kernels) and disabled
(QuantizeLinear and DequantizeLinear as written). Each run prints its top-1 accuracy, where labels are given, and on how
many examples its top-1 is that of our predictions.

Exit status: 0 when both runs agree on at least `N - allowed-differences` examples, 1 when one does not, 2 when the
comparison could not be made.

Needs the packages onnxruntime, numpy and safetensors. `check_onnxruntime.sh` installs them and does the whole round.
"""

import argparse
import json
import sys
from pathlib import Path


class CheckError(Exception):
    """Why the comparison could not be made."""


def main() -> int:
    args = parse_arguments()
    try:
        return check(args)
    except ImportError as error:
        problem = f"{error}; install onnxruntime, numpy and safetensors"
    except (CheckError, OSError) as error:
        problem = str(error)
    print(f"error: {problem}", file=sys.stderr)
    return 2


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the ONNX file to run")
    parser.add_argument("data", type=Path, help="inputs: .safetensors, .npz or .npy")
    parser.add_argument("predictions", type=Path, help="our predictions: .safetensors with `top1` and `outputs`, "
                        ".npy with classes, or .json with a list of classes or {\"top1\": [...]}")
    parser.add_argument("--tensor", default="images", help="tensor in the data that feeds the input (default: images)")
    parser.add_argument("--labels", help="tensor in the data with the classes; without it no accuracy is printed")
    parser.add_argument("--input", help="input of the model (default: its only one)")
    parser.add_argument("--divide-by", type=float, help="divisor for the data as f32; pixels 0..255 want 255")
    parser.add_argument("--scale", type=float, help="factor for the data as f32, after the division")
    parser.add_argument("--reshape", type=lambda text: [int(part) for part in text.split(",")],
                        help="shape of the input, the first extent -1: -1,1,28,28")
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--allowed-differences", type=int, default=2, help="examples that may differ (default: 2)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    args = parser.parse_args()
    if args.batch_size < 1:
        parser.error("--batch-size is at least 1")
    if args.allowed_differences < 0:
        parser.error("--allowed-differences is not negative")
    return args


def check(args: argparse.Namespace) -> int:
    import numpy as np
    import onnxruntime

    inputs = prepare(read_tensor(args.data, args.tensor), args)
    labels = read_tensor(args.data, args.labels) if args.labels else None
    ours, our_outputs = read_predictions(args.predictions)
    for what, tensor in [("labels", labels), ("predictions", ours)]:
        if tensor is not None and len(tensor) != len(inputs):
            raise CheckError(f"{len(tensor)} {what} for {len(inputs)} inputs")

    levels = onnxruntime.GraphOptimizationLevel
    required = len(inputs) - args.allowed_differences
    runs = []
    for name, level in [("enabled", levels.ORT_ENABLE_ALL), ("disabled", levels.ORT_DISABLE_ALL)]:
        outputs = run(args, inputs, level)
        top1 = outputs.argmax(axis=1)
        result = {"optimizations": name, "agreement": int((top1 == ours).sum()), "examples": len(inputs)}
        if labels is not None:
            result["top1_percent"] = round(100.0 * float((top1 == labels).mean()), 4)
        if our_outputs is not None:
            if our_outputs.shape != outputs.shape:
                raise CheckError(f"our outputs have shape {our_outputs.shape}, onnxruntime's {outputs.shape}")
            result["max_difference"] = float(np.abs(outputs - our_outputs).max(initial=0.0))
        result["holds"] = result["agreement"] >= required
        runs.append(result)

    if args.json:
        print(json.dumps({"onnxruntime": onnxruntime.__version__, "required": required, "runs": runs}, indent=2))
    else:
        print(f"onnxruntime {onnxruntime.__version__}, {args.model}, {len(inputs)} examples")
        for result in runs:
            line = f"optimizations {result['optimizations']:<8}  top-1 agrees on {result['agreement']}"
            if "top1_percent" in result:
                line += f", accuracy {result['top1_percent']:.2f} %"
            if "max_difference" in result:
                line += f", outputs differ by at most {result['max_difference']:.3g}"
            print(line)
        if not all(result["holds"] for result in runs):
            print(f"fewer than {required} agree")
    return 0 if all(result["holds"] for result in runs) else 1


def run(args, inputs, level):
    """All outputs of the model's first output, `[N, classes]`."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3
    if not args.model.is_file():
        raise CheckError(f"{args.model}: no such file")
    try:
        session = onnxruntime.InferenceSession(str(args.model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exception types have no common base but this
        raise CheckError(f"{args.model}: onnxruntime refuses the file: {error}") from error
    names = [one.name for one in session.get_inputs()]
    if args.input is None and len(names) != 1:
        raise CheckError(f"{args.model} has the inputs {', '.join(names)}: choose one with --input")
    name = args.input or names[0]
    if name not in names:
        raise CheckError(f"{args.model} has no input {name!r}; it has {', '.join(names)}")
    try:
        batches = [
            session.run(None, {name: inputs[at : at + args.batch_size]})[0]
            for at in range(0, len(inputs), args.batch_size)
        ]
    except Exception as error:
        raise CheckError(f"{args.model}: onnxruntime cannot run it on the data: {error}") from error
    outputs = np.concatenate(batches)
    if outputs.ndim != 2 or len(outputs) != len(inputs):
        raise CheckError(f"the first output has shape {outputs.shape}, expected [{len(inputs)}, classes]")
    return outputs


def prepare(tensor, args):
    import numpy as np

    if len(tensor) == 0:
        raise CheckError(f"{args.data}: tensor {args.tensor!r} is empty")
    tensor = tensor.astype(np.float32)
    if args.divide_by is not None:
        if args.divide_by == 0:
            raise CheckError("--divide-by is zero")
        tensor = tensor / np.float32(args.divide_by)
    if args.scale is not None:
        tensor = tensor * np.float32(args.scale)
    if args.reshape is not None:
        try:
            tensor = tensor.reshape(args.reshape)
        except ValueError as error:
            raise CheckError(f"--reshape {args.reshape} for shape {tensor.shape}: {error}") from error
    return np.ascontiguousarray(tensor)


def read_tensor(path: Path, name: str):
    import numpy as np

    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    tensors = read_tensors(path)
    if name not in tensors:
        raise CheckError(f"{path} has no tensor {name!r}; it has {', '.join(sorted(tensors))}")
    return tensors[name]


def read_tensors(path: Path) -> dict:
    import numpy as np
    from safetensors.numpy import load_file

    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    if path.suffix == ".safetensors":
        return load_file(path)
    raise CheckError(f"{path}: expected .safetensors, .npz or .npy")


def read_predictions(path: Path):
    """Our top-1 classes `[N]`, and our outputs `[N, classes]` where the file has them."""
    import numpy as np

    if path.suffix == ".json":
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckError(f"{path}: {error}") from error
        classes = content.get("top1") if isinstance(content, dict) else content
        if not isinstance(classes, list):
            raise CheckError(f"{path}: expected a list of classes or an object with the list `top1`")
        return np.asarray(classes), None
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False), None
    tensors = read_tensors(path)
    if "top1" not in tensors:
        raise CheckError(f"{path} has no tensor 'top1'; it has {', '.join(sorted(tensors))}")
    return tensors["top1"], tensors.get("outputs")


if __name__ == "__main__":
    sys.exit(main())
