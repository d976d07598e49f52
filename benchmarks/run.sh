#!/usr/bin/env bash
# Builds and runs one benchmark, with one thread per rank.
#
#   bash benchmarks/run.sh watching [ranks]     two ranks where nothing is said
#
# Everything it makes lies below build/.

# shellcheck source=cmake/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cmake/setup.sh"

readonly name="${1:-}" world_size="${2:-2}"
readonly build="$accel_build_dir/benchmarks"
[[ -n "$name" && -e "$accel_root/benchmarks/$name.cpp" ]] || fail "usage: bash benchmarks/run.sh <name> [ranks], with" \
  "one of these names: $(cd "$accel_root/benchmarks" && printf '%s ' ./*.cpp | sed 's|\./||g; s|\.cpp||g')"

build_program() {
  logged configure "cmake could not configure the benchmarks" "Read the log" \
    cmake -S "$accel_root" -B "$build" -DCMAKE_BUILD_TYPE=Release -DACCEL_BUILD_TESTS=OFF -DACCEL_BUILD_EXAMPLES=OFF \
    -DACCEL_BUILD_BENCHMARKS=ON "${accel_cmake_arguments[@]}"
  logged build "the benchmark does not compile" "Read the log" cmake --build "$build" --target "$name"
}

# Rank 0 speaks; the others' words are shown only where they fail.
run_ranks() {
  local rank pids=() log="$accel_setup_dir/benchmark-rank"
  export WORLD_SIZE="$world_size" MASTER_ADDR=127.0.0.1 MASTER_PORT=$((20000 + RANDOM % 10000)) OMP_NUM_THREADS=1
  for ((rank = 1; rank < world_size; ++rank)); do
    RANK="$rank" "$build/benchmarks/$name" >"$log$rank.log" 2>&1 </dev/null &
    pids+=($!)
  done
  RANK=0 "$build/benchmarks/$name" </dev/null || fail "rank 0 failed; what it said stands above"
  for ((rank = 1; rank < world_size; ++rank)); do
    wait "${pids[rank - 1]}" || fail "rank $rank failed; what it said is in $log$rank.log"
  done
}

accel_setup quickstart
stage "compiling $name" build_program
stage "running it on $world_size ranks" run_ranks
