#!/usr/bin/env bash
# The reduced set of kernel tests under compute-sanitizer, in parts that run at once:
#
#   scripts/sanitize_cuda.sh memcheck build/Release/qkvgemm_cuda_test
#   scripts/sanitize_cuda.sh racecheck BUILT_WITH_QKVGEMM_RACECHECK/qkvgemm_cuda_test [--seed N]
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
parts=${PARTS:-$(nproc)}
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
for ((i = 0; i < parts; i++)); do
  { compute-sanitizer --tool "$tool" --error-exitcode 9 "$test" --quick --once --part "$i/$parts" "$@" >"$logs/$i" 2>&1 ||
    echo "part $i of $parts: exit status $?" >>"$logs/failed"; } &
done
wait
if [ -e "$logs/failed" ]; then
  cat "$logs"/[0-9]* "$logs/failed"
  exit 1
fi
if ! grep -qE "[1-9][0-9]* cases, 0 failures" "$logs"/[0-9]*; then
  echo "no case ran; is there a GPU?" >&2
  exit 1
fi
echo "$tool: clean, $(awk '/cases, 0 failures/ { n += $1 } END { print n }' "$logs"/[0-9]*) cases in $SECONDS s"
