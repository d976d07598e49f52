#!/usr/bin/env bash
# Builds and runs the benchmarks: those named, or all.
#
#   bash benchmarks/run.sh                            lists them, and runs all
#   bash benchmarks/run.sh step_time all_reduce       runs two of them
#   bash benchmarks/run.sh step_time --quick          fewer cases and rounds: less than 50 s each
#   bash benchmarks/run.sh step_time --ranks 4        at this world size only
#   bash benchmarks/run.sh step_time --device cuda    on GPUs only, with the torch of python3 and without network
#   bash benchmarks/run.sh step_time --json FILE      writes the rows there, too: a JSON object a line
#   bash benchmarks/run.sh --compare OLD NEW          what changed between two such files, beyond the noise
#
# Whom accel is compared with is set up, too: PyTorch and HF Accelerate. Everything it makes lies below build/.

# shellcheck source=cmake/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cmake/setup.sh"

readonly build="$accel_build_dir/benchmarks"
export PYTHONPATH="$accel_root/benchmarks" PYTHONPYCACHEPREFIX="$build/pycache"
unset PYTHONDONTWRITEBYTECODE

driver() { "$1" -m support.driver --build "$build" --python "$1" "${@:2}"; }

build_programs() {
  logged configure "cmake could not configure the benchmarks" "Read the log" \
    cmake -S "$accel_root" -B "$build" -DCMAKE_BUILD_TYPE=Release -DACCEL_BUILD_TESTS=OFF -DACCEL_BUILD_EXAMPLES=OFF \
    -DACCEL_BUILD_BENCHMARKS=ON -DCMAKE_EXPORT_COMPILE_COMMANDS=ON "${accel_cmake_arguments[@]}"
  logged build "the benchmarks do not compile" "Read the log" cmake --build "$build" -j "$accel_jobs"
}

# What cannot be run is said before anything is installed or built.
if have python3; then
  driver python3 --only-check "$@" || exit $?
  [[ " $* " != *" --compare "* && " $* " != *" --help "* && " $* " != *" -h "* ]] || exit 0
fi
where=benchmarks
if [[ " $* " == *" --device cuda "* && -e /dev/nvidia0 ]]; then where=gpu; fi
accel_setup "$where"
stage "compiling the programs" build_programs
driver "$accel_python" "$@"
