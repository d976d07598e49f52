#!/usr/bin/env bash
# Runs a program on two ranks, as the README's shell loop does, and looks for lines in what they say:
#
#   bash two_ranks.sh <program> <line>...
set -euo pipefail

program="$1"
shift
# Below the range from which the system hands out ports by itself.
export WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=$((20000 + RANDOM % 10000)) OMP_NUM_THREADS=1

both_ranks() {
  local ended=0 first
  RANK=0 "$program" 2>&1 &
  first=$!
  RANK=1 "$program" 2>&1 || ended=$?
  wait "$first" || ended=$?
  return "$ended"
}

ended=0
output="$(both_ranks)" || ended=$?
printf '%s\n' "$output"
for line in "$@"; do
  grep -Fxq "$line" <<<"$output" || { echo "there is no line \"$line\"" && ended=1; }
done
exit "$ended"
