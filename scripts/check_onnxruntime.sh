#!/usr/bin/env bash
# Quantizes the example network, evaluates the QDQ file, and lets onnxruntime judge: the same top-1 on at least 1,998
# of the 2,000 test images. Needs python3 and access to PyPI; everything made stays under target/.
#
#   scripts/check_onnxruntime.sh            # W8A8, 8-bit per channel
#   PYTHON=python3.12 scripts/check_onnxruntime.sh
set -euo pipefail
cd "$(dirname "$0")/.."

environment=target/onnxruntime-venv
out=target/onnxruntime-check

if ! "$environment/bin/python" -c 'import numpy, onnxruntime, safetensors' 2>/dev/null; then
    "${PYTHON:-python3}" -m venv "$environment"
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check numpy onnxruntime safetensors
fi

# Exit status 1 is the program's own check (an accuracy floor); onnxruntime's verdict is wanted all the same.
status=0
cargo run --release -- quantize examples/fashion/fashion_cnn.onnx \
    --config examples/fashion/w8a8.toml --out "$out" || status=$?
[ "$status" -le 1 ] || exit "$status"

quantized=$(find "$out" -maxdepth 1 -name '*.onnx' | sort)
if [ "$(printf '%s\n' "$quantized" | grep -c .)" -ne 1 ]; then
    echo "error: expected one ONNX file in $out, found: ${quantized:-none}" >&2
    exit 2
fi

cargo run --release -- evaluate "$quantized" \
    --config examples/fashion/w8a8.toml --predictions "$out/predictions.safetensors"

verdict=0
"$environment/bin/python" scripts/check_onnxruntime.py \
    "$quantized" examples/fashion/test2000.safetensors "$out/predictions.safetensors" \
    --tensor images --labels labels --divide-by 255 --reshape=-1,1,28,28 || verdict=$?
[ "$verdict" -eq 0 ] || exit "$verdict"
exit "$status"
