"""Top-1 of onnxruntime's static quantization of the fashion network, for each of its ways to calibrate.

    python scripts/accuracy_onnxruntime.py examples/fashion
"""

import logging
import pathlib
import sys
import tempfile

import onnxruntime
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from safetensors.numpy import load_file

logging.disable(logging.WARNING)


def images(path):
    tensors = load_file(path)
    return tensors["images"].reshape(-1, 1, 28, 28).astype("float32") / 255, tensors.get("labels")


class Batches(CalibrationDataReader):
    def __init__(self, x, size=64):
        self.batches = iter([{"image": x[at : at + size]} for at in range(0, len(x), size)])

    def get_next(self):
        return next(self.batches, None)


def top1(model, x, labels):
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    right = 0
    for at in range(0, len(x), 100):
        scores = session.run(None, {name: x[at : at + 100]})[0]
        right += int((scores.argmax(1) == labels[at : at + 100]).sum())
    return 100 * right / len(x)


def main(folder):
    folder = pathlib.Path(folder)
    calibration, _ = images(folder / "calib512.safetensors")
    x, labels = images(folder / "test2000.safetensors")
    print("| calibration | per channel | activations | top-1 % |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        quant_pre_process(str(folder / "fashion_cnn.onnx"), str(work / "prepared.onnx"))
        for method in CalibrationMethod:
            if method == CalibrationMethod.Distribution:
                continue  # Only for float8.
            for per_channel in (False, True):
                for activations in (QuantType.QUInt8, QuantType.QInt8):
                    quantize_static(
                        str(work / "prepared.onnx"),
                        str(work / "quantized.onnx"),
                        Batches(calibration),
                        quant_format=QuantFormat.QDQ,
                        per_channel=per_channel,
                        activation_type=activations,
                        weight_type=QuantType.QInt8,
                        calibrate_method=method,
                    )
                    found = top1(work / "quantized.onnx", x, labels)
                    kind = "u8" if activations == QuantType.QUInt8 else "s8"
                    print(f"| {method.name} | {'yes' if per_channel else 'no'} | {kind} | {found:.2f} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
