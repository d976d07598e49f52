#!/usr/bin/env bash
# Runs a program on several ranks, as the README's shell loop does, or alone without a launcher's variables if it is
# one. Fails if any of them does, or if no line of what they say is one of these:
#
#   bash ranks.sh <world size> <program> [<argument>...] -- <extended regular expression of a whole line>...
set -euo pipefail

world_size="$1"
shift
program=()
while [[ "$1" != -- ]]; do
  program+=("$1")
  shift
done
shift

# Takes a port that nobody listens on, for as long as this script runs. The test programs take theirs from 20000 to
# 29999, and the system hands out those from 32768 on by itself.
take_port() {
  local port
  for ((;;)); do
    port=$((30000 + RANDOM % 2700))
    exec {lock}>"${TMPDIR:-/tmp}/accel-test-port-$port"
    if flock --nonblock "$lock" && ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then break; fi
    exec {lock}>&-
  done
  export MASTER_PORT="$port"
}

all_ranks() {
  local ended=0 rank pids=()
  for ((rank = 0; rank < world_size; ++rank)); do
    RANK="$rank" "${program[@]}" 2>&1 &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || ended=$?; done
  return "$ended"
}

export OMP_NUM_THREADS=1
ended=0
if ((world_size == 1)); then
  output="$("${program[@]}" 2>&1)" || ended=$?
else
  take_port
  export WORLD_SIZE="$world_size" MASTER_ADDR=127.0.0.1
  output="$(all_ranks)" || ended=$?
  rm -f "${TMPDIR:-/tmp}/accel-test-port-$MASTER_PORT"
fi
printf '%s\n' "$output"
for line in "$@"; do
  grep -Exq "$line" <<<"$output" || { echo "there is no line \"$line\"" && ended=1; }
done
((ended == 0)) || echo "exit code $ended"
exit "$ended"
