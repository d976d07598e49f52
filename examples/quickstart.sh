#!/usr/bin/env bash
# Trains a classifier of digits on two ranks, then once more with plain LibTorch, and compares.
#
#   bash examples/quickstart.sh
#
# Everything it makes lies below build/.

# shellcheck source=cmake/setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cmake/setup.sh"

readonly build="$accel_build_dir/quickstart"
readonly data="$accel_root/examples/data/digits.csv"
readonly results="$build/results"
readonly world_size=2

ranks=()  # process ids

end_ranks() {
  local rank
  for rank in ${ranks[@]+"${ranks[@]}"}; do
    kill -KILL "$rank" 2>/dev/null || true
    wait "$rank" 2>/dev/null || true  # keeps the shell from announcing it
  done
  ranks=()
}
trap end_ranks EXIT
trap 'exit 130' INT TERM

build_programs() {
  logged configure "cmake could not configure the examples" "Read the log" \
    cmake -S "$accel_root" -B "$build" -DCMAKE_BUILD_TYPE=Release \
    -DACCEL_BUILD_TESTS=OFF -DACCEL_BUILD_EXAMPLES=ON "${accel_cmake_arguments[@]}"
  logged build "the examples do not compile" "Read the log" \
    cmake --build "$build" --target train_libtorch train_accel -j $((accel_jobs < 2 ? 1 : 2))
}

# A port that nobody listens on.
free_port() {
  local port
  for ((;;)); do
    port=$((20000 + RANDOM % 10000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  say "$port"
}

# This is all a launcher has to do: start the same program once for each rank.
start_rank() {
  export RANK="$1" LOCAL_RANK="$1" WORLD_SIZE="$world_size" LOCAL_WORLD_SIZE="$world_size"
  export MASTER_ADDR=127.0.0.1 MASTER_PORT="$2" OMP_NUM_THREADS=1
  exec "$build/examples/train_accel" "$data" "$results" </dev/null
}

start_ranks() {
  local rank port
  port="$(free_port)"
  start_rank 0 "$port" &  # shows its progress here; the others have a log
  ranks+=($!)
  for ((rank = 1; rank < world_size; ++rank)); do
    start_rank "$rank" "$port" >"$results/rank$rank.log" 2>&1 &
    ranks+=($!)
  done
}

# Waits for all ranks; as soon as one fails, ends the others and shows what they wrote.
wait_for_ranks() {
  local rank
  for rank in "${ranks[@]}"; do
    wait -n || blame_ranks
  done
  ranks=()
}

blame_ranks() {
  local log
  end_ranks
  for log in "$results"/rank*.log; do sed "s|^|[$(basename "$log" .log)] |" "$log" >&2; done
  fail "a rank failed; what it said stands above"
}

train_accel() {
  start_ranks
  wait_for_ranks
}

train_libtorch() {
  OMP_NUM_THREADS=1 "$build/examples/train_libtorch" "$data" "$results" </dev/null \
    || fail "train_libtorch failed; what it said stands above"
}

# number_list loss file: the numbers of "loss": [...], one a line
number_list() {
  tr -d '\n' <"$2" | sed -n "s/.*\"$1\" *: *\[\([^]]*\)\].*/\1/p" | tr ',' '\n' | tr -d ' \t'
  say
}

# number accuracy file: the number of "accuracy": ...
number() { tr -d '\n' <"$2" | sed -n "s/.*\"$1\" *: *\([-+.0-9eE]*\).*/\1/p"; }

# Both add the same numbers in another order, and a float has 24 bits: 3.5e-08 was seen, and a wrong average or a lost
# batch would show above 1e-3. The bound leaves room for other processors, and none for mistakes.
readonly largest_difference=1e-5

compare() {
  say "    epoch   accel, $world_size ranks   LibTorch, 1 process   difference"
  paste <(number_list loss "$results/accel.json") <(number_list loss "$results/libtorch.json") \
    | LC_ALL=C awk -v bound="$largest_difference" 'NF == 2 {
        difference = $1 - $2
        if (difference < 0) difference = -difference
        if (difference > largest) largest = difference
        if (!(difference <= bound) || $1 ~ /n/ || $2 ~ /n/) too_far = 1  # nan and inf, too
        printf "    %5d   %14.6f   %19.6f   %10.1e\n", NR, $1, $2, difference
      }
      NF == 1 { unequal = 1 }
      END {
        printf "    largest difference of the mean loss of an epoch: %.1e, at most %.0e is allowed\n", largest, bound
        if (unequal || !NR) print "    the two runs have different numbers of epochs, or none"
        exit unequal || !NR || too_far
      }' || fail "the two runs do not train the same; how they differ stands above"
}

accel_setup quickstart
stage "compiling the two programs ($accel_jobs at a time)" build_programs
rm -rf "$results" && mkdir -p "$results"
stage "training on $world_size ranks with accel" train_accel
stage "training in one process with plain LibTorch, twice the batch" train_libtorch
say "==> the loss of both"
compare
say "    (two ranks are about the same result here, not about speed: this network is too small to share)"
say "    the weights are in ${results#"$accel_root"/}/model.safetensors"
say "    everything took $SECONDS s"
# A figure that is not above 95 % is a failure, and the last line all the same.
LC_ALL=C awk -v accuracy="$(number accuracy "$results/accel.json")" \
  'BEGIN { printf "accuracy %.1f %%\n", 100 * accuracy; exit !(accuracy > 0.95) }'
