#!/usr/bin/env bash
# Where the time of a whole job goes: the share of each kind of work, on one thread and on all.
#
#   scripts/profile_job.sh                              # the main job: examples/fashion, 8 bits
#   scripts/profile_job.sh MODEL.onnx QUANT.toml
#
# Takes its samples with `perf`; without it, only the times are shown. The shares are those of samples in which the
# program, or the system on its behalf, was running.
set -euo pipefail
cd "$(dirname "$0")/.."
model=${1:-examples/fashion/fashion_cnn.onnx}
config=${2:-examples/fashion/w8a8.toml}

# With the names of functions, which the profile of the release keeps, and nothing else.
cargo build --release --quiet -p fastforward-cli
program=${CARGO_TARGET_DIR:-target}/release/fastforward
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# Category of a sample by its thread, library and function: the first line that fits.
# The engine computes on threads called rten-*; what it does there is executing the model, whatever function it is in.
categories='
function category(thread, library, symbol) {
    if (symbol ~ /clear_page|page_fault|alloc_pages|zap_|folio|mmap|munmap|madvise/) return "memory from the system"
    if (library ~ /kernel/) return "other work of the system"
    if (thread ~ /^rten/ && symbol ~ /pack_im2col|build_im2col|rten_gemm|conv::|[Cc]onv/) return "execution: convolutions and products"
    if (thread ~ /^rten/) return "execution: other operators"
    if (symbol ~ /rten/) return "execution: other operators"
    if (symbol ~ /sha2|sha256/) return "hashing"
    if (symbol ~ /serde|json|toml|prost/) return "texts and messages"
    if (symbol ~ /ff_kernels|range_setting|metrics|compare/) return "estimators, comparing, metrics"
    if (symbol ~ /fastforward_core::data|safetensors|npyz/) return "reading samples"
    if (symbol ~ /memmove|memcpy|memset|mi_|malloc|free/) return "copies and allocation"
    return "everything else"
}'

for threads in 1 "$(nproc)"; do
    echo
    echo "## $threads thread(s)"
    for run in 1 2 3; do
        start=$(date +%s%N)
        "$program" quantize "$model" --config "$config" --out "$folder/out" -j "$threads" >"$folder/log" 2>&1 ||
            [ $? -eq 1 ] || { cat "$folder/log" >&2; exit 2; }
        echo "wall, run $run: $((($(date +%s%N) - start) / 1000000)) ms"
        rm -rf "$folder/out"
    done
    if ! command -v perf >/dev/null; then
        echo "perf is not installed: no shares"
        continue
    fi
    perf record --quiet --output "$folder/perf" -- \
        "$program" quantize "$model" --config "$config" --out "$folder/out" -j "$threads" >"$folder/log" 2>&1 || true
    rm -rf "$folder/out"
    perf report --input "$folder/perf" --stdio --no-children --percent-limit 0 --field-separator '|' \
        --sort comm,dso,symbol 2>/dev/null | awk -F '|' "$categories"'
        /^ *[0-9]/ {
            gsub(/^ +| +$/, "", $2); sub(/%/, "", $1)
            kind = category($2, $3, $4); share[kind] += $1
            if ($1 + 0 > largest[kind] + 0) { largest[kind] = $1; name[kind] = $4 }
        }
        END { for (kind in share) printf "%6.1f %%  %-38s largest: %5.1f %% %.90s\n", share[kind], kind, largest[kind], name[kind] }
    ' | sort -rn
done
