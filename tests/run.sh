#!/usr/bin/env bash
# Builds and runs all tests.
#
#   bash tests/run.sh           up to 20 minutes on two cores from an empty machine
#   bash tests/run.sh --full    and the quickstart, and the tests with ranks under AddressSanitizer and UBSan
#   bash tests/run.sh --matrix  instead: the second compiler, the second standard, the newest LibTorch, and clang-tidy
#
# Everything it makes lies below build/.

# shellcheck source=cmake/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cmake/setup.sh"

readonly build="$accel_build_dir/tests"
readonly sanitized="$accel_build_dir/sanitize"
readonly matrix="$accel_build_dir/matrix"

what="${1:-}"
case "$what" in
  "" | --full | --matrix) ;;
  *)
    echo "usage: bash tests/run.sh [--full | --matrix]" >&2
    exit 2
    ;;
esac

trap 'exit 130' INT TERM

minutes=()  # one line per stage, for the summary

# timed <headline> <command...>: a stage whose time is told again at the end
timed() {
  local headline="$1" begin="$SECONDS"
  stage "$@"
  minutes+=("$(LC_ALL=C awk -v s="$((SECONDS - begin))" -v what="$headline" \
    'BEGIN { printf "%6.1f min  %s", s / 60, what }')")
}

# configure <folder> <cmake arguments...>; -O0 and short debug information compile fastest.
configure() {
  local folder="$1"
  shift
  logged configure "cmake could not configure the tests" "Read the log" \
    cmake -S "$accel_root" -B "$folder" -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG="-O0 -g1" \
    -DACCEL_BUILD_TESTS=ON "${accel_cmake_arguments[@]}" "$@"
}

# compile <folder> <targets...>; the output is shown: a compiler's errors are what one wants to see.
compile() {
  local folder="$1"
  shift
  cmake --build "$folder" -j "$accel_jobs" "$@" \
    || fail "the tests do not compile; what the compiler said stands above"
}

# run_tests <folder>; a failure is told at the end, when the other tests have run, too.
run_tests() {
  local log="$1/ctest.log"
  ctest --test-dir "$1" --output-on-failure --no-label-summary -j 2 | tee "$log" || failed+=("$1")
  count passed '  Passed ' "$log"
  count skipped '\*\*\*Skipped ' "$log"
  count failed_tests '\*\*\*\(Failed\|Timeout\|Exception\|Not Run\)' "$log"
  reasons+="$(skip_reasons "$1/Testing/Temporary/LastTest.log")"$'\n'
}

# judge <name> <command...>: a command that is a test by itself
judge() {
  local name="$1"
  shift
  if "$@"; then
    passed=$((passed + 1))
  else
    failed+=("$name")
    failed_tests=$((failed_tests + 1))
  fi
}

# It trains, compares, and fails itself below 95 %.
run_quickstart() { judge "the quickstart" bash "$accel_root/examples/quickstart.sh"; }

# count <variable> <pattern> <ctest's log>: adds the tests that ended so
count() {
  local number
  number="$(grep -c "^ *[0-9]*/[0-9]* Test .*$2" "$3" || true)"
  printf -v "$1" %d $((${!1} + number))
}

# Why tests were skipped, a line each, from ctest's full log.
skip_reasons() {
  awk '/: SKIPPED:$/ { getline; getline; sub(/^ */, "  skipped: "); print }' "$1" | sort -u
}

build_tests() {
  configure "$build" -DACCEL_BUILD_EXAMPLES=ON
  compile "$build"
}

# The folders whose tests start ranks, as a CMake list.
rank_folders() {
  (cd "$accel_root/tests" && grep -lE '(on|run)_ranks\(' ./*/*_test.cpp) \
    | cut -d / -f 2 | sort -u | paste -s -d ';'
}

build_sanitized() {
  configure "$sanitized" -DACCEL_BUILD_EXAMPLES=OFF -DACCEL_INSTALL=OFF \
    -DACCEL_SANITIZE=address,undefined -DACCEL_TEST_FOLDERS="$(rank_folders)"
  compile "$sanitized"
}

# The contract of backends, the laws and the messages for wrong use: what a compiler or a LibTorch could break.
build_matrix() {
  configure "$matrix" -DACCEL_BUILD_EXAMPLES=OFF -DACCEL_INSTALL=OFF -DCMAKE_CXX_STANDARD=23 \
    -DACCEL_TEST_FOLDERS="backend;parity;compile_fail"
  compile "$matrix"
}

# Over one unit that includes every header; what comes from a precompiled header would not be looked at.
run_clang_tidy() {
  local folder="$accel_build_dir/tidy"
  configure "$folder" -DACCEL_BUILD_EXAMPLES=OFF -DCMAKE_CXX_STANDARD=23 \
    -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON -DCMAKE_EXPORT_COMPILE_COMMANDS=ON
  judge "clang-tidy" "clang-tidy-$second_clang" --quiet --warnings-as-errors='*' -p "$folder" \
    "$accel_root/tests/odr.cpp"
}

failed=()  # folders
passed=0 skipped=0 failed_tests=0
reasons=""
if [[ "$what" == --matrix ]]; then
  timed "set-up" set_up_for matrix
  timed "compiling the tests with the other compiler and LibTorch" build_matrix
  timed "running them" run_tests "$matrix"
  timed "clang-tidy" run_clang_tidy
else
  timed "set-up" set_up_for tests
  timed "compiling the tests" build_tests
  timed "compiling every header alone" compile "$build" --target accel_verify_interface_header_sets
  timed "running the tests" run_tests "$build"
fi
if [[ "$what" == --full ]]; then
  timed "the quickstart" run_quickstart
  timed "compiling the tests of ranks with sanitizers" build_sanitized
  timed "running the tests of ranks with sanitizers" run_tests "$sanitized"
fi

say "==> the minutes of each stage"
printf '%s\n' "${minutes[@]}"
printf '%s' "$reasons" | sed '/^$/d' | sort -u
say "$passed passed, $failed_tests failed, $skipped skipped"
if ((${#failed[@]} > 0)); then
  say "FAILED: ${failed[*]}"
  exit 1
fi
