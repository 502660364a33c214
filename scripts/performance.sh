#!/usr/bin/env bash
# Runs our benches and the same work in PyTorch, one after the other on this machine, and prints them side by side:
# the tables of docs/performance.md. Wants a machine that does nothing else. Needs python3 and PyPI for PyTorch (some
# 5 GB); everything made stays under target/.
#
#   scripts/performance.sh                 # one thread, then two
#   scripts/performance.sh 1               # one thread
#   PYTHON=target/venv/bin/python scripts/performance.sh   # a Python that has torch already
#   RUN="nice -n -5" scripts/performance.sh   # what to put before each measurement; none takes much over a minute
set -euo pipefail
cd "$(dirname "$0")/.."

out=target/performance
mkdir -p "$out"
# Package, bench, and what of it to run.
benches=(
    "ff-kernels ratios"
    "ff-kernels kernels --sample-count 5 min_error_grid"
    "ff-kernels gptq --sample-count 5 gemm_limit.*2048|hessian.*4096|factor.*4096|update_.*4096,.Channel"
    "fastforward-core resolve"
    "fastforward-rs encoder"
)
parts=(elementwise ranges gptq encoder)

if [ -z "${PYTHON:-}" ]; then
    environment=target/pytorch-venv
    PYTHON=$environment/bin/python
    if ! "$PYTHON" -c 'import torch' 2>/dev/null; then
        python3 -m venv "$environment"
        "$PYTHON" -m pip install --quiet --disable-pip-version-check numpy torch
    fi
fi

# What cargo built for a bench: `built PACKAGE BENCH`.
built() {
    cargo bench -p "$1" --bench "$2" --no-run 2>&1 | tee "$out/build.txt" |
        sed -n "s/^ *Executable .*(\(.*\))$/\1/p"
    if grep -q '^error' "$out/build.txt"; then
        cat "$out/build.txt" >&2
        return 1
    fi
}

declare -A programs
for line in "${benches[@]}"; do
    read -r package bench _ <<<"$line"
    programs[$bench]=$(built "$package" "$bench")
done

for threads in "${@:-1 2}"; do
    for n in $threads; do
        rm -f "$out"/*."$n".txt "$out"/*."$n".json
        for line in "${benches[@]}"; do
            read -r _ bench arguments <<<"$line"
            # shellcheck disable=SC2086 # several words
            FF_BENCH_THREADS=$n ${RUN:-} "${programs[$bench]}" --bench $arguments >"$out/$bench.$n.txt"
        done
        for part in "${parts[@]}"; do
            # shellcheck disable=SC2086 # several words
            ${RUN:-} "$PYTHON" scripts/performance/pytorch.py --threads "$n" "$part" >"$out/pytorch-$part.$n.json"
        done
        "$PYTHON" scripts/performance/table.py --threads "$n" "$out"
    done
done
