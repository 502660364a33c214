#!/usr/bin/env bash
# Prints the tables of docs/accuracy.md: top-1 of the example networks for each number of bits and each way to choose weights.
# Everything made stays under target/. Takes a quarter of an hour; figures do not depend on the machine's speed.
#
#   scripts/accuracy.sh
#   PYTHON=python3.12 scripts/accuracy.sh     # with onnxruntime's static quantization beside (numpy, onnx, onnxruntime,
#                                             # safetensors have to be installed there)
set -euo pipefail
cd "$(dirname "$0")/.."

cargo build --release --quiet -p fastforward-cli
program=$PWD/target/release/fastforward
work=target/accuracy
rm -rf "$work"
mkdir -p "$work"

ranges='[[algorithm]]
type = "activation_weighted_mse"'
sequential='[[algorithm]]
type = "sequential_mse"'
gptq='[[algorithm]]
type = "gptq"'
gptq_biases="$gptq
"'correct_bias = true'
descent='[[algorithm]]
type = "coordinate_descent"'
adaround='[[algorithm]]
type = "adaround"'
adaround_biases="$adaround
"'correct_bias = true'
blocks="$adaround
"'block_layers = 2'
correction='[[algorithm]]
type = "bias_correction"'

# Model, configuration it starts from, bits of weights, the estimator of their ranges, algorithms: prints top-1 in per cent.
top1() {
    local model=$1 base=$2 bits=$3 estimator=$4
    shift 4
    local folder config
    folder=$(dirname "$base")
    config=$work/job.toml
    # Paths in a configuration are relative to its folder.
    sed -e "/^type = /,\$!b" -e "" "$base" |
        awk '/^\[\[algorithm\]\]/ { exit } { print }' |
        sed -e "s#^data = \"#data = \"$PWD/$folder/#" -e '/^max_drop\|^min_metric\|^expect/d' |
        awk -v bits="$bits" -v estimator="$estimator" '
            /^name = / { weights = /weights/ }
            weights && /^quantizer/ { sub(/num_bits = [0-9]+/, "num_bits = " bits) }
            weights && /^range/ { $0 = "range = { estimator = \"" estimator "\" }" }
            { print }' >"$config"
    printf '\n%s\n' "$@" >>"$config"
    "$program" quantize "$model" --config "$config" --out "$work/out" --quiet |
        awk '$1 == "quantized" { print $4 }'
}

widths='8 4 3 2'
row() {
    local name=$1
    shift
    printf '| %s |' "$name"
    for bits in $widths; do
        printf ' %s |' "$(top1 "$model" "$base" "$bits" "$@")"
    done
    printf '\n'
}

table() {
    printf '\n%s, top-1 in %%:\n\n| weights | 8 bits | 4 | 3 | 2 |\n|---|---|---|---|---|\n' "$1"
    row 'nearest, min-max ranges' running_minmax
    row 'nearest, ranges of least error' min_error_grid
    row '`gptq`' running_minmax "$gptq"
    row '`gptq` with `correct_bias`' running_minmax "$gptq_biases"
    row '`gptq`, `coordinate_descent`' running_minmax "$gptq" "$descent"
    row '`adaround`' running_minmax "$adaround"
    row '`adaround` with `correct_bias`' running_minmax "$adaround_biases"
    row '`adaround`, `bias_correction`' running_minmax "$adaround" "$correction"
    row '`activation_weighted_mse`, `adaround`' running_minmax "$ranges" "$adaround"
    row '`sequential_mse`, `adaround`' running_minmax "$sequential" "$adaround"
}

model=examples/fashion/fashion_cnn.onnx base=examples/fashion/w3a8.toml
table 'fashion_cnn, activations 8 bits, 2,000 images'
model=examples/digits/digits_cnn.onnx base=examples/digits/w8a8.toml
table 'digits_cnn, activations 8 bits, 500 images'
model=examples/digits/digits_mlp.onnx
table 'digits_mlp, activations 8 bits, 500 images'

widths='3 2'
for model in fashion/fashion_cnn digits/digits_cnn digits/digits_mlp; do
    printf '\n%s in blocks, top-1 in %%:\n\n| weights | 3 bits | 2 |\n|---|---|---|\n' "${model#*/}"
    case $model in
        fashion/*) base=examples/fashion/w3a8.toml ;;
        *) base=examples/digits/w8a8.toml ;;
    esac
    model=examples/$model.onnx
    row '`adaround` in blocks' running_minmax "$blocks"
    row '`activation_weighted_mse`, `adaround` in blocks' running_minmax "$ranges" "$blocks"
done

printf '\nTraining the digits networks as models in code, activations 8 bits, 500 images:\n\n'
cargo run --release --quiet -p fastforward-rs --example train -- digits

if [ -n "${PYTHON:-}" ]; then
    printf "\nonnxruntime's static quantization of fashion_cnn, W8A8, QDQ:\n\n"
    "$PYTHON" scripts/accuracy_onnxruntime.py examples/fashion
fi
