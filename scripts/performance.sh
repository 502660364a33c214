#!/usr/bin/env bash
# Runs our benches and the same work in PyTorch, one after the other on this machine, and prints them side by side:
# the tables of docs/performance.md. Wants a machine that does nothing else. Needs python3 and PyPI for PyTorch (some
# 5 GB); everything made stays under target/.
#
#   scripts/performance.sh                 # one thread, then two
#   scripts/performance.sh 1               # one thread
#   PYTHON=target/venv/bin/python scripts/performance.sh   # a Python that has torch already
set -euo pipefail
cd "$(dirname "$0")/.."

out=target/performance
mkdir -p "$out"
benches=(ff-kernels:kernels ff-kernels:gptq fastforward-core:resolve fastforward-rs:encoder)

if [ -z "${PYTHON:-}" ]; then
    environment=target/pytorch-venv
    PYTHON=$environment/bin/python
    if ! "$PYTHON" -c 'import torch' 2>/dev/null; then
        python3 -m venv "$environment"
        "$PYTHON" -m pip install --quiet --disable-pip-version-check numpy torch
    fi
fi

for bench in "${benches[@]}"; do
    cargo bench -p "${bench%%:*}" --bench "${bench##*:}" --no-run
done

for threads in "${@:-1 2}"; do
    for n in $threads; do
        for bench in "${benches[@]}"; do
            FF_BENCH_THREADS=$n cargo bench --quiet -p "${bench%%:*}" --bench "${bench##*:}" \
                >"$out/${bench##*:}.$n.txt"
        done
        "$PYTHON" scripts/performance/pytorch.py --threads "$n" >"$out/pytorch.$n.json"
        "$PYTHON" scripts/performance/table.py --threads "$n" "$out"
    done
done
