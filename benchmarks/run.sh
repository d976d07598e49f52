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

accel_setup quickstart
stage "compiling $name" build_program
stage "running it on $world_size ranks" bash "$accel_root/tests/support/ranks.sh" "$world_size" "$build/benchmarks/$name"
