#!/usr/bin/env bash
# The reduced set of kernel tests under compute-sanitizer, in parts that run at once:
#
#   scripts/sanitize_cuda.sh memcheck build/Release/qkvgemm_cuda_test
#   SEED=7 PARTS=8 scripts/sanitize_cuda.sh racecheck BUILT_WITH_QKVGEMM_RACECHECK/qkvgemm_cuda_test --filter narrow
#
# racecheck follows an mbarrier only for threads that arrive there themselves, so it wants a build with
# CMAKE_CUDA_FLAGS=-DQKVGEMM_RACECHECK, in which all do.
set -uo pipefail
if [ $# -lt 2 ]; then
  echo "usage: $0 memcheck|racecheck QKVGEMM_CUDA_TEST [arguments of the test]" >&2
  exit 2
fi
tool=$1 test=$2
shift 2
seed=${SEED:-$((RANDOM * 32768 + RANDOM))}
cases=$("$test" --quick --list --seed "$seed" "$@" | sed -n 's/^\([0-9]*\) cases$/\1/p')
if [ "${cases:-0}" -eq 0 ]; then
  echo "$test has no such case" >&2
  exit 2
fi
# Each has a context of its own on the device.
parts=${PARTS:-$(($(nproc) < 16 ? $(nproc) : 16))}
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
echo "$tool, seed $seed: $cases cases in $parts parts"
for ((i = 0; i < parts; i++)); do
  # A part may be without cases.
  "$test" --quick --list --seed "$seed" --part "$i/$parts" "$@" | grep -q "^0 cases$" && continue
  { compute-sanitizer --tool "$tool" --error-exitcode 9 "$test" --quick --once --seed "$seed" --part "$i/$parts" "$@" \
    >"$logs/$i" 2>&1 || echo "part $i of $parts: exit status $?" >>"$logs/failed"; } &
done
wait
tested=$(awk '/cases, 0 failures/ { n += $1 } END { print n + 0 }' "$logs"/*)
if [ -e "$logs/failed" ] || [ "$tested" -ne "$cases" ] || grep -qE "hazards? displayed \([1-9]|SUMMARY: [1-9]" "$logs"/*; then
  cat "$logs"/*
  echo "$tool: $tested of $cases cases ran without a failure; SEED=$seed runs them again" >&2
  exit 1
fi
echo "$tool: clean, in $SECONDS s"
