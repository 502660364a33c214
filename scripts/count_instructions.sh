#!/usr/bin/env bash
# Counts the instructions that the hottest kernels execute per element, and fails where they have become more than
# crates/ff-kernels/benches/instructions.txt allows. Counting needs no quiet machine: the same program counts the same.
#
#   scripts/count_instructions.sh            # exit 0: within budget; 1: some kernel is not; 2: could not be counted
#   scripts/count_instructions.sh --write    # writes what was counted as the new budgets
#
# valgrind knows no AVX-512, so it is the AVX2 loops that are counted: eight elements at a time, on any x86-64 machine
# with AVX2. Each kernel runs a few times and then some times more; the difference is divided by its elements.
set -euo pipefail
cd "$(dirname "$0")/.."

budgets=crates/ff-kernels/benches/instructions.txt
tolerance=3 # percent
elements=$((256 * 256)) # of one run, see crates/ff-kernels/examples/count.rs

cannot() { echo "error: $1" >&2; exit 2; }
[ "$#" -eq 0 ] || [ "$*" = --write ] || cannot "unknown argument \`$*\`; the only one is --write"
command -v valgrind >/dev/null || cannot "valgrind is missing; install it (apt-get install valgrind) to count instructions"
[ "$(uname -m)" = x86_64 ] || cannot "budgets are for x86-64, this is $(uname -m)"
grep -qw avx2 /proc/cpuinfo || cannot "this machine has no AVX2, for which the budgets are"

cargo build --quiet --release --locked -p ff-kernels --example count || cannot "the example \`count\` did not build"
program="${CARGO_TARGET_DIR:-target}/release/examples/count"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Instructions of a whole run of `count KERNEL TIMES`.
count() {
    valgrind --tool=callgrind --callgrind-out-file="$work/out" "$program" "$1" "$2" >"$work/log" 2>&1 \
        || { cat "$work/log" >&2; cannot "\`count $1 $2\` failed under valgrind"; }
    sed -n 's/^\(summary\|totals\): *\([0-9]*\).*/\2/p' "$work/out" | head -1
}

measure() {
    local few more
    few=$(count "$1" 1)
    more=$(count "$1" 3)
    [ -n "$few" ] && [ -n "$more" ] || cannot "valgrind gave no total for $1"
    awk -v a="$few" -v b="$more" -v n=$((2 * elements)) 'BEGIN { printf "%.3f", (b - a) / n }'
}

if [ "${1:-}" = --write ]; then
    {
        grep '^#' "$budgets"
        grep -v '^#' "$budgets" | while read -r kernel _; do echo "$kernel $(measure "$kernel")"; done
    } >"$work/budgets"
    cp "$work/budgets" "$budgets"
    cat "$budgets"
    exit
fi

failed=0
printf '%-16s %10s %10s %8s\n' kernel budget counted change
while read -r kernel budget; do
    counted=$(measure "$kernel") || exit 2
    change=$(awk -v b="$budget" -v c="$counted" 'BEGIN { printf "%+.1f", 100 * (c - b) / b }')
    verdict=
    if awk -v d="$change" -v t="$tolerance" 'BEGIN { exit !(d > t) }'; then
        verdict="over budget"
        failed=1
    elif awk -v d="$change" -v t="$tolerance" 'BEGIN { exit !(d < -t) }'; then
        verdict="better: --write keeps it"
    fi
    printf '%-16s %10s %10s %7s%% %s\n' "$kernel" "$budget" "$counted" "$change" "$verdict"
done < <(grep -v '^#' "$budgets")
exit "$failed"
