#!/usr/bin/env bash
# Builds and runs the tests.
#
#   bash tests/run.sh           all of them: 15 to 30 minutes on two cores from an empty machine, half when built
#   bash tests/run.sh --full    and the quickstart; then, in this order, what fits into an hour in all: the tests with
#                               ranks under AddressSanitizer and UBSan, clang-tidy, each header alone, ThreadSanitizer
#                               over the threads, each benchmark once, and the other compiler. On a slow day that is
#                               less, and the end says what was left out
#   bash tests/run.sh --matrix  instead: the second compiler, the second standard, the newest LibTorch, and clang-tidy
#   bash tests/run.sh --gpu     instead: what needs a GPU, with the torch of python3, without network and packages.
#                               CATCH2_DIR and NLOHMANN_JSON_DIR name the folders that hold them (install prefixes, such
#                               as the usr/ of an unpacked .deb) where CMake does not find them by itself
#
# ACCEL_TESTS_MUST_RUN="torchrun mpi slurm namespaces scikit-learn accelerate safetensors
# transformers" (or some of these, or all) makes a failure of a test that would be skipped because this machine lacks that.
#
# Everything it makes lies below build/.

# shellcheck source=cmake/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cmake/setup.sh"

readonly build="$accel_build_dir/tests"
readonly sanitized="$accel_build_dir/sanitize"
readonly threads="$accel_build_dir/sanitize-threads"
readonly matrix="$accel_build_dir/matrix"
readonly other="$accel_build_dir/other-compiler"
readonly fuzz="$accel_build_dir/fuzz"
readonly gpu="$accel_build_dir/gpu"
readonly full_minutes=60  # by the end of which --full is to be done, as far as one can tell

what="${1:-}"
case "$what" in
  "" | --full | --matrix | --gpu) ;;
  *)
    echo "usage: bash tests/run.sh [--full | --matrix | --gpu]" >&2
    exit 2
    ;;
esac
[[ "${ACCEL_TESTS_MUST_RUN:-}" != 1 ]] || export ACCEL_TESTS_MUST_RUN=all

trap 'exit 130' INT TERM

# What the summary at the end is made of.
readonly cases="$accel_setup_dir/cases.tsv"      # a line per test case: outcome, seconds, name, reason
readonly folders="$accel_setup_dir/folders.tsv"  # a line per program: seconds, name
minutes=()                                       # a line per stage
left_out=()                                      # sentences
broken=()                                        # stages that failed without the name of a test

other_compiler=()  # the arguments of cmake that choose it, once it is there
slowness=100       # of the last stage whose time was foreseen, in percent: this machine is another one every hour

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
  rm -rf "$folder/results"
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

# run_tests <folder> <prefix of the names> <ctest arguments...>; a failure is told at the end, when the others have run.
run_tests() {
  local folder="$1" prefix="$2"
  shift 2
  ctest --test-dir "$folder" --output-on-failure --no-label-summary -j 2 "$@" | tee "$folder/ctest.log" \
    || broken+=("ctest in ${folder#"$accel_root"/}")
  awk -v prefix="$prefix" -v results="$folder/results" -v cases="$cases" -v folders="$folders" \
    "$read_ctest" "$folder/ctest.log"
}

# A line of ctest is a test; where it was one of our programs, the lines that the program left are the tests.
# shellcheck disable=SC2016  # awk's fields, not the shell's variables
readonly read_ctest='
  BEGIN { FS = OFS = "\t" }
  function note(outcome, seconds, name, reason) { print outcome, seconds, prefix name, reason >>cases }
  match($0, /^ *[0-9]+\/[0-9]+ Test +#[0-9]+: /) {
    rest = substr($0, RLENGTH + 1)
    match(rest, /[0-9.]+ sec/)
    seconds = substr(rest, RSTART, RLENGTH - 4)
    outcome = rest ~ /   Passed / ? "passed" : rest ~ /\*\*\*Skipped / ? "skipped" : "failed"
    name = rest
    sub(/ \.\.\.+.*/, "", name)
    print seconds, prefix name >>folders
    file = results "/" name ".tsv"
    programs = failures = 0
    running = ended = ""
    while ((getline line <file) > 0) {
      split(line, field, "\t")
      if (field[1] == "running") { running = field[3]; continue }
      if (field[1] == "ended") { ended = 1; continue }
      running = ""
      ++programs
      if (field[1] == "failed") ++failures
      note(field[1], field[2], name ": " field[3], field[4])
    }
    close(file)
    if (running != "") note("failed", 0, name ": " running " (the program ended in it)", "")
    else if (programs == 0) note(outcome, seconds, name, outcome == "skipped" ? "see the log of ctest" : "")
    else if (outcome == "failed" && failures == 0) note("failed", seconds, name " (the program itself)", "")
    else if (!ended) note("failed", 0, name " (the program did not reach its end)", "")
  }'

# judge <name> <command...>: a command that is a test by itself
judge() {
  local name="$1" outcome=passed begin="$SECONDS"
  shift
  "$@" || outcome=failed
  printf '%s\t%d\t%s\t\n' "$outcome" "$((SECONDS - begin))" "$name" >>"$cases"
}

# It trains, compares, and fails itself below 95 %.
run_quickstart() { judge "the quickstart" bash "$accel_root/examples/quickstart.sh"; }

# Each once, quickly: not for its figures but so that it works when somebody wants them.
run_benchmarks() { judge "the benchmarks" bash "$accel_root/benchmarks/run.sh" --quick; }

build_tests() {
  configure "$build" -DACCEL_BUILD_EXAMPLES=ON
  compile "$build"
}

run_header_check() {
  judge "every header compiles alone" cmake --build "$build" -j "$accel_jobs" \
    --target accel_verify_interface_header_sets
}

# The folders whose tests start ranks; but parity, which trains for minutes what the others train too, and what is never
# sanitized so.
rank_folders() {
  (cd "$accel_root/tests" && grep -lE '(on|run)_ranks\(' ./*/*_test.cpp) \
    | cut -d / -f 2 | grep -vxE 'parity|nccl|sanitizers' | sort -u
}

# In the order of what there is to find, each line behind the seconds that it takes: what holds gradients, threads and
# shared memory, bytes of others, the rest.
sanitized_batches() {
  local first=$'450 gradient prepare\n350 checkpoint resume\n320 backend collective\n230 launch faults dataset'
  echo "$first"
  rank_folders | grep -vxF "$(tr ' ' '\n' <<<"$first")" | paste -s -d ' ' | sed 's/^/270 /'
}

configure_sanitized() {
  configure "$sanitized" -DACCEL_BUILD_EXAMPLES=OFF -DACCEL_INSTALL=OFF -DACCEL_SANITIZE=address,undefined
}

# run_sanitized <folders...>
run_sanitized() {
  local labels
  labels="$(IFS='|' && echo "$*")"
  compile "$sanitized" --target "${@/%/_tests}"
  run_tests "$sanitized" "sanitized: " -L "^($labels)\$"
}

# With the other compiler, whose ThreadSanitizer this is. In it the reducer's tests, and those of what it runs on.
run_for_threads() {
  ensure_other_compiler
  configure "$threads" -DACCEL_BUILD_EXAMPLES=OFF -DACCEL_INSTALL=OFF -DCMAKE_CXX_FLAGS_DEBUG="-O1 -g1" \
    -DACCEL_SANITIZE=thread -DACCEL_TEST_FOLDERS="backend;checkpoint;data;gradient;sanitizers" "${other_compiler[@]}"
  compile "$threads"
  run_tests "$threads" "threads: "
}

# The contract of backends, the laws and the messages for wrong use: what a compiler or a LibTorch could break.
build_matrix() {
  local folder="$1"
  shift
  configure "$folder" -DACCEL_BUILD_EXAMPLES=OFF -DACCEL_INSTALL=OFF -DCMAKE_CXX_STANDARD=23 \
    -DACCEL_TEST_FOLDERS="backend;parity;compile_fail" "$@"
  compile "$folder"
}

run_with_other_compiler() {
  ensure_other_compiler
  build_matrix "$other" "${other_compiler[@]}"
  run_tests "$other" "other compiler: "
}

run_clang_tidy_of_other_compiler() {
  ensure_other_compiler
  run_clang_tidy "${other_compiler[@]}"
}

# Over a unit that includes every header; a precompiled header would not be looked at.
run_clang_tidy() {
  local folder="$accel_build_dir/tidy" unit=all_headers_and_nccl.cpp
  configure "$folder" -DACCEL_BUILD_EXAMPLES=OFF -DCMAKE_CXX_STANDARD=23 -DCMAKE_UNITY_BUILD=OFF \
    -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON -DCMAKE_EXPORT_COMPILE_COMMANDS=ON "$@"
  if ! grep -q "$unit" "$folder/compile_commands.json"; then
    unit=all_headers.cpp
    left_out+=("clang-tidy has not seen the headers of NCCL: there is no target accel::nccl")
  fi
  judge "clang-tidy" "clang-tidy-$second_clang" --quiet --warnings-as-errors='*' -p "$folder" "$folder/tests/$unit"
}

# foreseen <seconds> <headline> <command...>: a stage that takes so long on two quiet cores, if nothing of it is there.
foreseen() {
  local begin="$SECONDS" expected="$1"
  shift
  timed "$@"
  slowness=$(((SECONDS - begin) * 100 / expected))
  ((slowness >= 100)) || slowness=100
}

# if_time <seconds> <headline> <command...>: the same, if it is likely to end within the time of --full; if not, the end
# says so.
if_time() {
  local needed=$(($1 * slowness / 100))
  if ((SECONDS + needed <= 60 * full_minutes)); then
    foreseen "$@"
  else
    left_out+=("left out: $2, about $((needed / 60)) minutes, when $((SECONDS / 60)) of $full_minutes were over")
  fi
}

ensure_other_compiler() {
  ((${#other_compiler[@]} > 0)) || timed "set-up of the other compiler" set_up_other_compiler
}

# The other compiler, with the LibTorch that is there. 2.11 was built with the names that Clang 17 and GCC make of
# constrained templates.
set_up_other_compiler() {
  local CXX=""  # of these stages only
  ensure_clang
  ensure_thread_sanitizer
  other_compiler=(-DCMAKE_CXX_COMPILER="$CXX" -DCMAKE_CXX_FLAGS=-fclang-abi-compat=17)
}

# Its runtime, and what finds the names that suppressions are compared with.
ensure_thread_sanitizer() {
  local packages=()
  have "llvm-symbolizer-$second_clang" || packages+=("llvm-$second_clang")
  [[ -e "$("$CXX" -print-file-name=libclang_rt.tsan-x86_64.a)" ]] || packages+=("libclang-rt-$second_clang-dev")
  if ((${#packages[@]} > 0)); then stage "installing ${packages[*]}" install_packages "${packages[@]}"; fi
}

# Half a minute of each target; the heads of tests/fuzz/*.cpp have the command for as long as one likes.
run_fuzz() {
  ensure_other_compiler
  configure "$fuzz" -DACCEL_BUILD_EXAMPLES=OFF -DACCEL_INSTALL=OFF -DACCEL_TEST_FOLDERS=none -DACCEL_FUZZ=ON \
    "${other_compiler[@]}"
  cmake --build "$fuzz" -j "$accel_jobs" --target fuzz_header fuzz_manifest
  local target
  for target in header manifest; do
    mkdir -p "$fuzz/found/$target"
    judge "fuzz: $target" "$fuzz/tests/fuzz_$target" -max_total_time=30 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
      -verbosity=0 -dict="$accel_root/tests/fuzz/words.dict" -artifact_prefix="$fuzz/" "$fuzz/found/$target" \
      "$accel_root/tests/fuzz/corpus/$target"
  done
}

need_gpu() {
  compgen -G '/dev/nvidia[0-9]*' >/dev/null \
    || fail "this machine has no GPU of NVIDIA's (no /dev/nvidia0), so there is nothing that --gpu could run"
}

build_gpu() {
  configure "$gpu" -DACCEL_BUILD_EXAMPLES=OFF -DACCEL_INSTALL=OFF -DACCEL_TEST_FOLDERS=nccl -DCMAKE_UNITY_BUILD=OFF
  compile "$gpu"
}

# Folders and test cases of which there are many; the rest of the summary is short.
print_summary() {
  say "==> the minutes of each stage"
  printf '%s\n' "${minutes[@]}"
  if [[ -s "$folders" ]]; then
    say "==> the minutes of each folder of tests, and of each test that is a command"
    LC_ALL=C sort -t $'\t' -k 1,1nr "$folders" | LC_ALL=C awk -F '\t' '
      $1 >= 3 { printf "%6.1f min  %s\n", $1 / 60, $2; next }
      { rest += $1; ++n }
      END { if (n) printf "%6.1f min  %d more, of less than 3 s each\n", rest / 60, n }'
    say "==> the ten slowest test cases"
    LC_ALL=C sort -t $'\t' -k 2,2nr "$cases" | LC_ALL=C awk -F '\t' 'NR <= 10 { printf "%6.1f s    %s\n", $2, $3 }'
  fi
  awk -F '\t' '$1 == "skipped" { ++count[$4] } END { for (reason in count)
    printf "  skipped: %d x %s\n", count[reason], reason }' "$cases" | sort
  awk -F '\t' '$1 == "failed" { print "  FAILED: " $3 }' "$cases"
  printf '  %s\n' ${left_out[@]+"${left_out[@]}"} | sed '/^ *$/d'
}

count() { awk -F '\t' -v outcome="$1" '$1 == outcome { ++n } END { print n + 0 }' "$cases"; }

[[ "$what" != --gpu ]] || need_gpu
mkdir -p "$accel_setup_dir"
: >"$cases"
: >"$folders"
case "$what" in
  --matrix)
    timed "set-up" set_up_for matrix
    timed "compiling the tests with the other compiler and LibTorch" build_matrix "$matrix"
    timed "running them" run_tests "$matrix" "matrix: "
    timed "clang-tidy" run_clang_tidy
    ;;
  --gpu)
    timed "set-up" set_up_for gpu
    timed "compiling what needs a GPU" build_gpu
    timed "running it" run_tests "$gpu" "" -L gpu
    left_out+=("the benchmarks: bash benchmarks/run.sh --device cuda")
    ;;
  *)
    timed "set-up" set_up_for tests
    foreseen 480 "compiling the tests" build_tests
    if [[ "$what" == --full ]]; then  # a minute more of random programs, of kills during saves, of damaged checkpoints
      export ACCEL_PROGRAMS="${ACCEL_PROGRAMS:-200}" ACCEL_KILLS="${ACCEL_KILLS:-100}"
      export ACCEL_DAMAGES="${ACCEL_DAMAGES:-10000}"
    fi
    timed "running the tests" run_tests "$build" ""
    unset ACCEL_PROGRAMS ACCEL_KILLS ACCEL_DAMAGES  # sanitizers and other compilers find the same with fewer
    ;;
esac
if [[ "$what" == --full ]]; then
  foreseen 70 "the quickstart" run_quickstart
  configure_sanitized
  mapfile -t batches < <(sanitized_batches)
  for batch in "${batches[@]}"; do
    # shellcheck disable=SC2086  # the folders of a batch are words
    if_time "${batch%% *}" "sanitizers over ${batch#* }" run_sanitized ${batch#* }
  done
  if_time 270 "clang-tidy" run_clang_tidy_of_other_compiler
  if_time 300 "each header alone" run_header_check
  if_time 270 "ThreadSanitizer" run_for_threads
  if_time 140 "fuzzing" run_fuzz
  if_time 420 "the benchmarks" run_benchmarks
  if_time 300 "the pass with the other compiler" run_with_other_compiler
  # 1.5 GB to fetch, and another release than yesterday's on some days.
  left_out+=("the newest LibTorch is left to --matrix")
fi

print_summary
failed="$(count failed)"
say "$(count passed) passed, $failed failed, $(count skipped) skipped"
if ((failed > 0 || ${#broken[@]} > 0)); then
  ((${#broken[@]} == 0)) || say "FAILED: ${broken[*]}"
  exit 1
fi
