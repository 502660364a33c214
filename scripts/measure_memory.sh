#!/usr/bin/env bash
# Peak memory and time of quantizing weights without data, for a model of any size, as ONNX with external data and as
# safetensors. Needs GNU time (/usr/bin/time) and about 2.6 times the model's size of free disk.
#
#   scripts/measure_memory.sh [BYTES] [FOLDER]
#
# BYTES is 2GiB unless said otherwise. Everything that is written goes to FOLDER (target/large), and is removed at the end.
# Each job is run on one thread and on all cores. The bound is the largest tensor in float and 64 MiB. Exit code 1 when a
# run takes more.
set -euo pipefail
cd "$(dirname "$0")/.."
size=${1:-2GiB}
folder=${2:-target/large}
target=${CARGO_TARGET_DIR:-target}
[ -x /usr/bin/time ] || { echo "GNU time is missing: install the package \`time\`" >&2; exit 2; }

cargo build --release --quiet -p fastforward-cli
cargo build --release --quiet -p fastforward-onnx --example large_model
mkdir -p "$folder"
trap 'rm -rf "$folder"' EXIT
written=$("$target/release/examples/large_model" "$size" "$folder")
echo "$written"
bytes=$(sed 's/.* tensors, \([0-9]*\) bytes.*/\1/' <<<"$written")
largest=$(sed 's/.*the largest \([0-9]*\)$/\1/' <<<"$written")
bound=$(((largest + 64 * 1024 * 1024) / 1024))
failed=0

printf '\n%-52s %10s %10s %7s %8s %8s\n' "quantize" "peak kB" "bound kB" "holds" "seconds" "MB/s"
for model in model.onnx model.safetensors; do
  for config in examples/memory/*.toml; do
    for threads in 1 "$(nproc)"; do
      rm -rf "$folder/out"
      # What was written must not be in the way of what is measured.
      sync
      /usr/bin/time -v -o "$folder/time" "$target/release/fastforward" quantize "$folder/$model" \
        --config "$config" --out "$folder/out" --quiet --threads "$threads" >"$folder/log"
      peak=$(sed -n 's/.*Maximum resident set size (kbytes): //p' "$folder/time")
      seconds=$(sed -n 's/.*Elapsed (wall clock) time.*: //p' "$folder/time" |
        awk -F: '{ s = 0; for (i = 1; i <= NF; i++) s = 60 * s + $i; print s }')
      holds=yes
      [ "$peak" -le "$bound" ] || { holds=NO; failed=1; }
      printf '%-52s %10d %10d %7s %8s %8.0f\n' "$model $(basename "$config") -j $threads" "$peak" "$bound" "$holds" \
        "$seconds" "$(awk -v b="$bytes" -v s="$seconds" 'BEGIN { print b / s / 1e6 }')"
    done
  done
done
exit "$failed"
