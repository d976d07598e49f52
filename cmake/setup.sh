# shellcheck shell=bash
# The one set-up behind accel's commands: finds what they need and installs what is missing.
#
#   source cmake/setup.sh
#   accel_setup quickstart        or in its place: tests, matrix, benchmarks, gpu
#
# Afterwards accel_cmake_arguments holds what cmake is to be called with, accel_jobs how many
# compilers fit into this machine, and accel_build_dir where everything private goes; for tests and
# benchmarks accel_python can import the torch that they are built with.
#
# What the machine has is taken first: LIBTORCH, then the torch of python3, then an earlier private
# copy. Only compiler, CMake, Ninja and Python need root; the rest goes below build/.

set -euo pipefail

accel_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
readonly accel_root
readonly accel_build_dir="$accel_root/build"
readonly accel_setup_dir="$accel_build_dir/setup"
readonly accel_debs_dir="$accel_build_dir/debs"     # unpacked packages, as if it were /
readonly accel_light_dir="$accel_build_dir/libtorch"  # torch alone: builds and runs programs
readonly accel_full_dir="$accel_build_dir/venv"       # torch with all it needs: torchrun works
readonly accel_newest_dir="$accel_build_dir/newest"   # the newest torch, alone; remove it for a newer one
readonly accel_peers_dir="$accel_build_dir/peers"     # what the benchmarks compare with and torch lacks

readonly minimum_cmake=3.25
readonly minimum_gcc=12
readonly second_clang=19  # the other compiler that the tests are run with

# The oldest LibTorch we support, and the two CUDA packages that libtorch_cpu.so itself loads.
readonly light_wheels=(torch==2.11.0 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85)
# And headers of CUDA that torch's own packages lack: c10/cuda and nccl.h read them, so accel::nccl needs them.
readonly full_wheels=(torch==2.11.0 numpy nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85)
# What some tests compare with. Without it those are skipped, and say so: no reason to stop.
readonly reference_wheels=(scikit-learn==1.9.1 torchdata==0.11.0 accelerate==1.15.0 transformers==5.24.0)
readonly peer_wheels=(accelerate==1.15.0)

accel_cmake_arguments=()
accel_jobs=1
accel_python=""

# ---- saying what happens ------------------------------------------------------------------------

say() { printf '%s\n' "$*"; }

fail() {
  printf '\nerror: %s\n' "$*" >&2
  exit 1
}

# Runs a command under a headline and says how long it took: stage <headline> <command...>
stage() {
  local headline="$1" begin="$SECONDS"
  shift
  say "==> $headline"
  "$@" || return
  say "    $((SECONDS - begin)) s: $headline"
}

# Runs a command with its output in a file; a failure is one sentence:
#   logged <log name> <what failed> <what to do> <command...>
logged() {
  local log="$accel_setup_dir/$1.log" failure="$2" remedy="$3"
  shift 3
  mkdir -p "$accel_setup_dir"
  "$@" >"$log" 2>&1 </dev/null && return 0
  fail "$failure: $*
$remedy. The output is in $log"
}

# ---- small questions ----------------------------------------------------------------------------

have() { command -v "$1" >/dev/null 2>&1; }

# at_least 3.25 3.25.1
at_least() { [[ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" == "$1" ]]; }

cmake_version() { cmake --version 2>/dev/null | sed -n '1s/cmake version //p'; }

# What /etc/os-release says about this distribution: distribution ID, distribution VERSION_CODENAME
distribution() { (. /etc/os-release 2>/dev/null && printf '%s' "${!1:-}"); }

memory_gb() { awk '/^MemAvailable:/ { printf "%d", $2 / 1048576 }' /proc/meminfo; }

free_gb() { df -Pk "$1" | awk 'NR == 2 { printf "%d", $4 / 1048576 }'; }

# A program that includes accel takes 2.4 GB to compile, a folder of tests up to 2.9 GB.
choose_jobs() {
  local by_memory=$(($(memory_gb) / 3)) cores
  cores="$(nproc)"
  accel_jobs=$((cores < by_memory ? cores : by_memory))
  ((accel_jobs >= 1)) || accel_jobs=1
}

# ---- system packages ----------------------------------------------------------------------------

# Sets CXX to the first compiler that is new enough.
find_compiler() {
  local candidate
  for candidate in ${CXX:-} g++ g++-14 g++-13 g++-12; do
    have "$candidate" || continue
    if "$candidate" --version | grep -qi clang \
      || at_least "$minimum_gcc" "$("$candidate" -dumpversion)"; then
      export CXX="$candidate"
      return 0
    fi
  done
  return 1
}

have_cmake() { have cmake && at_least "$minimum_cmake" "$(cmake_version)"; }

# Can python3 make a virtual environment with pip in it?
have_python() { have python3 && python3 -c 'import ensurepip, venv' 2>/dev/null; }

# Prints the packages whose tools are missing.
missing_tools() {
  find_compiler || say g++
  have_cmake || say cmake
  have ninja || say ninja-build
}

missing_python() {
  have_python || say python3 python3-venv
  # Debian's pip trusts what this package brings.
  [[ -e /etc/ssl/certs/ca-certificates.crt ]] || say ca-certificates
}

# Will python3 be needed to fetch a wheel? A guess, made before cmake can look for LibTorch.
wheel_is_likely() {
  [[ -z "${LIBTORCH:-}${LibTorch_ROOT:-}" ]] || return 1
  [[ ! -e "$accel_light_dir/complete" && ! -e "$accel_full_dir/complete" ]] || return 1
  ! python3 -c 'import importlib.util as i, sys; sys.exit(i.find_spec("torch") is None)' 2>/dev/null
}

install_packages() {
  local packages=("$@") as_root=()
  have apt-get || fail "these are missing: ${packages[*]}. Install GCC >= $minimum_gcc," \
    "CMake >= $minimum_cmake, Ninja and Python 3 with venv in this system's own way"
  if [[ "$(id -u)" != 0 ]]; then
    if have sudo && sudo -n true 2>/dev/null; then
      as_root=(sudo -n)
    else
      fail "system packages are missing and installing them needs root. Run this, then start again:

  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${packages[*]}
"
    fi
  fi
  logged apt-update "the package lists could not be fetched" "Check the network and apt's sources" \
    ${as_root[@]+"${as_root[@]}"} apt-get update
  # After an interrupted installation dpkg wants this first; else it does nothing.
  logged dpkg "dpkg could not finish an earlier installation" "Mend it, then start again" \
    ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive dpkg --configure -a
  logged apt-install "the packages ${packages[*]} could not be installed" \
    "Check the network and apt's sources" \
    ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y --no-install-recommends "${packages[@]}"
}

# What the tests of launchers and of packages start. Without it they are skipped, and say so: no reason to stop.
missing_launchers() {
  have mpirun.openmpi || say openmpi-bin
  have mpiexec.hydra || say mpich
  [[ -x /usr/sbin/slurmctld && -x /usr/sbin/slurmd ]] || say slurm-wlm
  [[ -x /usr/sbin/munged ]] || say munge
  have ip || say iproute2
  have hostname || say hostname
  have git || say git
}

ensure_launchers() {
  local packages
  packages="$(missing_launchers)"
  [[ -n "$packages" ]] || return 0
  # shellcheck disable=SC2086  # a list of words
  (stage "installing $(say $packages)" install_packages $packages) \
    || say "    they are missing, and the tests that need them are skipped"
}

# Sets CXX to the second compiler; g++ stays, its standard library is the one used.
ensure_clang() {
  local packages=() tool
  for tool in clang clang-tidy; do
    have "$tool-$second_clang" || packages+=("$tool-$second_clang")
  done
  if ((${#packages[@]} > 0)); then
    stage "installing ${packages[*]}" install_packages "${packages[@]}"
  fi
  export CXX="clang++-$second_clang"
}

ensure_tools() {
  local packages
  packages="$(missing_tools)"
  if wheel_is_likely; then packages+=" $(missing_python)"; fi
  # shellcheck disable=SC2086  # a list of words
  if [[ -n "${packages// /}" ]]; then
    stage "installing $(say $packages)" install_packages $packages
  fi
  find_compiler || fail "no compiler is new enough: accel needs GCC >= $minimum_gcc." \
    "Debian 12, Ubuntu 24.04 and newer have it; set CXX if you have it elsewhere"
  have_cmake || fail "CMake $(cmake_version) is too old: accel needs >= $minimum_cmake." \
    "Debian 12, Ubuntu 24.04 and newer have it; 'pip install cmake' brings it to older systems"
  have ninja || fail "ninja is not on PATH although its package is installed"
}

ensure_python() {
  local packages
  packages="$(missing_python)"
  # shellcheck disable=SC2086
  if [[ -n "$packages" ]]; then
    stage "installing $(say $packages)" install_packages $packages
  fi
}

# ---- what the build will find -------------------------------------------------------------------

probe() {
  logged probe "cmake cannot compile with $CXX" "Read the log" \
    cmake -S "$accel_root/cmake/probe" -B "$accel_setup_dir/probe" -G Ninja \
    -U 'LibTorch_*' -U 'nlohmann_json_*' -U 'Catch2_*' -Wno-dev \
    -DCMAKE_CXX_COMPILER="$CXX" -DCMAKE_PREFIX_PATH="$accel_debs_dir/usr"
}

# probed catch2: the version found, or nothing
probed() { sed -n "s/^$1=//p" "$accel_setup_dir/probe/facts"; }

# ---- header libraries from the distribution's packages ------------------------------------------

# apt-get with lists and cache of our own: needs no root and leaves the system's untouched.
private_apt() {
  local dir="$accel_setup_dir/apt" program="$1"
  shift
  mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
  "$program" -o "Dir::Etc::SourceList=$dir/sources.list" -o Dir::Etc::SourceParts=/dev/null \
    -o "Dir::State::Lists=$dir/lists" -o "Dir::Cache=$dir/cache" \
    -o APT::Sandbox::User="$(id -un)" -o Acquire::Languages=none "$@"
}

# The mirrors that this machine's apt uses for the distribution itself. apt reads its sources, in
# whichever form they are written.
configured_mirrors() {
  # shellcheck disable=SC2016  # apt's fields, not the shell's variables
  apt-get indextargets --no-release-info 'Created-By: Packages' \
    --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' \
    | awk -v codename="$1" '$2 ~ "^(old)?stable$|^" codename "$" && $3 == "main" { print $1 }' \
    | sort -u
}

# Writes a sources.list for the suites of one mirror that we look into.
write_sources() {
  local mirror="$1" codename="$2" key components=main suite
  key="/usr/share/keyrings/$(distribution ID)-archive-keyring.gpg"
  [[ "$(distribution ID)" == ubuntu ]] && components="main universe"
  for suite in "$codename" "$codename-backports"; do
    say "deb$([[ -e "$key" ]] && printf ' [signed-by=%s]' "$key") $mirror $suite $components"
  done >"$accel_setup_dir/apt/sources.list"
}

# Unpacks the first of the packages that comes in at least the given version, from the distribution
# or its backports: unpack_deb <version> <package>...
unpack_deb() {
  local minimum="$1" codename mirror package version dir="$accel_setup_dir/apt"
  shift
  have apt-get || return 1
  codename="$(distribution VERSION_CODENAME)"
  mkdir -p "$dir"
  for mirror in $(configured_mirrors "$codename"); do
    write_sources "$mirror" "$codename"
    private_apt apt-get update >"$accel_setup_dir/apt-private.log" 2>&1 || continue
    for package in "$@"; do
      version="$(private_apt apt-cache madison "$package" | awk '{ print $3 }' | sort -V | tail -1)"
      if [[ -z "$version" ]] || ! at_least "$minimum" "$version"; then continue; fi
      rm -rf "$dir/download" && mkdir -p "$dir/download" "$accel_debs_dir"
      (cd "$dir/download" && private_apt apt-get download "$package=$version") \
        >>"$accel_setup_dir/apt-private.log" 2>&1 || continue
      dpkg-deb -x "$dir"/download/*.deb "$accel_debs_dir" || continue
      rm -rf "$dir"
      return 0
    done
  done
  return 1
}

left_to_cmake() { say "    there is none: cmake fetches its sources; if that fails, install $1"; }

ensure_nlohmann_json() {
  [[ -z "$(probed nlohmann_json)" ]] || return 0
  stage "fetching nlohmann_json from the distribution's packages" \
    unpack_deb 3.10 nlohmann-json3-dev || left_to_cmake "nlohmann_json >= 3.10"
}

ensure_catch2() {
  [[ -z "$(probed catch2)" ]] || return 0
  stage "fetching Catch2 3 from the distribution's packages" \
    unpack_deb 3 libcatch2-dev catch2 || left_to_cmake "Catch2 >= 3"
}

# ---- LibTorch -----------------------------------------------------------------------------------

# torch_folder <environment>
torch_folder() { compgen -G "$1/lib/python*/site-packages/torch" | head -n 1; }

# new_environment <environment> <GB>; it counts once the file `complete` is in it.
new_environment() {
  local environment="$1" size="$2"
  rm -rf "$environment"
  (($(free_gb "$accel_build_dir") > 2 * size)) || fail "there is too little disk space in" \
    "$accel_build_dir for a private LibTorch: $((2 * size)) GB are needed, $size GB stay in use." \
    "Set LIBTORCH to one that you have, or move the repository"
  logged venv "python3 could not make a virtual environment in $environment" \
    "Check that 'python3 -m venv' works" python3 -m venv "$environment"
}

# add_wheels <environment> <pip arguments...>
add_wheels() {
  local environment="$1"
  shift
  mkdir -p "$accel_setup_dir/tmp"
  TMPDIR="$accel_setup_dir/tmp" logged pip "these could not be downloaded or installed" \
    "Check the network and pip's settings, or set LIBTORCH to a LibTorch >= 2.11 that you have" \
    "$environment/bin/python3" -m pip install --no-cache-dir --no-compile --progress-bar off "$@"
  rm -rf "$accel_setup_dir/tmp"
}

install_light() {
  new_environment "$accel_light_dir" 2
  add_wheels "$accel_light_dir" --no-deps "${light_wheels[@]}"
  touch "$accel_light_dir/complete"
}

install_full() {
  new_environment "$accel_full_dir" 5
  add_wheels "$accel_full_dir" "${full_wheels[@]}"
  touch "$accel_full_dir/complete"
}

# Added to what is there, also by an earlier set-up that asked for others: `complete` holds those that were.
ensure_references() {
  [[ "$(<"$accel_full_dir/complete")" != "${reference_wheels[*]}" ]] || return 0
  if (stage "adding ${reference_wheels[*]} below build/ (200 MB)" \
    add_wheels "$accel_full_dir" --retries 1 "${full_wheels[@]}" "${reference_wheels[@]}"); then
    say "${reference_wheels[*]}" >"$accel_full_dir/complete"
  else
    say "    they are missing, and the tests that compare with them are skipped"
  fi
}

# The CUDA packages that libtorch_cpu.so itself loads, in the version that the torch there asks for.
cuda_wheels_of() {
  "$1/bin/python3" -c 'import importlib.metadata, re
for line in importlib.metadata.requires("torch"):
    if match := re.match(r"cuda-toolkit\[[^]]*\](==[0-9.]+)", line):
        print("cuda-toolkit[cudart,cupti]" + match[1])'
}

install_newest() {
  new_environment "$accel_newest_dir" 2
  add_wheels "$accel_newest_dir" --no-deps torch
  # shellcheck disable=SC2046  # a list of words
  add_wheels "$accel_newest_dir" $(cuda_wheels_of "$accel_newest_dir")
  touch "$accel_newest_dir/complete"
}

# A setting that leads nowhere is the user's to mend; an old torch of python3 is passed over.
report_unusable_libtorch() {
  local problem
  problem="$(<"$accel_setup_dir/probe/libtorch_problem")"
  [[ -z "${LIBTORCH:-}${LibTorch_ROOT:-}" ]] || fail "$problem"
  if [[ "$problem" == *"too old"* ]]; then say "    $problem A private copy is used."; fi
}

use_libtorch() {
  accel_cmake_arguments+=(-DLibTorch_ROOT="$1")
  accel_libtorch="$1"
}

libtorch_for_programs() {
  if [[ -n "$(probed libtorch)" ]]; then
    use_libtorch "$(probed libtorch_prefix)"
    return
  fi
  report_unusable_libtorch
  if [[ -e "$accel_full_dir/complete" ]]; then
    use_libtorch "$(torch_folder "$accel_full_dir")"
    return
  fi
  if [[ ! -e "$accel_light_dir/complete" ]]; then
    ensure_python
    stage "installing a private LibTorch below build/ (1.5 GB)" install_light
  fi
  use_libtorch "$(torch_folder "$accel_light_dir")"
}

can_run_torchrun() { "$1" -c 'import numpy, torch.distributed.run' >/dev/null 2>&1; }

# The tests start ranks by torchrun too, so they want a torch that Python can import.
libtorch_for_tests() {
  local python
  python="$(probed libtorch_python)"
  if [[ -n "$(probed libtorch)" ]]; then
    if [[ -z "$python" ]] && have python3; then python="$(command -v python3)"; fi
    if [[ -n "$python" ]] && can_run_torchrun "$python"; then
      accel_cmake_arguments+=(-DACCEL_TEST_PYTHON="$python")
      accel_python="$python"
      use_libtorch "$(probed libtorch_prefix)"
      return
    fi
    say "    the LibTorch that is there comes without torchrun; a private copy is used"
  else
    report_unusable_libtorch
  fi
  if [[ ! -e "$accel_full_dir/complete" ]]; then
    ensure_python
    stage "installing a private PyTorch below build/ (4.7 GB)" install_full
  fi
  ensure_references
  accel_python="$accel_full_dir/bin/python3"
  accel_cmake_arguments+=(-DACCEL_TEST_PYTHON="$accel_python")
  use_libtorch "$(torch_folder "$accel_full_dir")"
}

libtorch_for_matrix() {
  if [[ ! -e "$accel_newest_dir/complete" ]]; then
    ensure_python
    stage "installing the newest LibTorch below build/ (1.5 GB)" install_newest
  fi
  use_libtorch "$(torch_folder "$accel_newest_dir")"
}

# ---- a machine with a GPU -----------------------------------------------------------------------

set_up_gpu() {
  have python3 || fail "on a GPU LibTorch is taken from python3's torch, and there is no python3"
  local torch
  torch="$(python3 -c 'import torch, os; assert torch.cuda.device_count(); print(os.path.dirname(torch.__file__))')" \
    || fail "python3 has no torch that can use this machine's GPU; what it said stands above"
  find_compiler || fail "no compiler is new enough: accel needs GCC >= $minimum_gcc"
  have_cmake || fail "CMake >= $minimum_cmake is needed, found: $(cmake_version)"
  local generator="Unix Makefiles" prefixes
  if have ninja; then generator=Ninja; fi
  prefixes="$accel_debs_dir/usr${CATCH2_DIR:+;$CATCH2_DIR}${NLOHMANN_JSON_DIR:+;$NLOHMANN_JSON_DIR}"
  accel_cmake_arguments=(-G "$generator" -DCMAKE_CXX_COMPILER="$CXX" -DLibTorch_ROOT="$torch"
    -DCMAKE_PREFIX_PATH="$prefixes" -DFETCHCONTENT_FULLY_DISCONNECTED=ON)
  accel_jobs="$(nproc)"
  accel_python=python3
}

# ---- the benchmarks' peers --------------------------------------------------------------------

# An environment of their own, which finds torch where it is.
install_peers() {
  rm -rf "$accel_peers_dir"
  logged venv "$accel_python could not make a virtual environment in $accel_peers_dir" \
    "Check that 'python3 -m venv' works" "$accel_python" -m venv "$accel_peers_dir"
  point_peers_to_torch
  add_wheels "$accel_peers_dir" "${peer_wheels[@]}"
  touch "$accel_peers_dir/complete"
}

point_peers_to_torch() {
  dirname "$accel_libtorch" >"$(compgen -G "$accel_peers_dir/lib/python*/site-packages" | head -n 1)/torch.pth"
}

ensure_peers() {
  if "$accel_python" -c 'import accelerate' >/dev/null 2>&1; then return 0; fi
  if [[ ! -e "$accel_peers_dir/complete" ]]; then
    (stage "installing HF Accelerate below build/ (60 MB)" install_peers) \
      || { say "    it is missing, and the benchmarks leave it out" && return 0; }
  fi
  point_peers_to_torch
  accel_python="$accel_peers_dir/bin/python3"
}

# ---- all of it ----------------------------------------------------------------------------------

accel_setup() { stage "set-up: looking for what is needed" set_up_for "$1"; }

set_up_for() {
  mkdir -p "$accel_setup_dir"
  if [[ "$1" == gpu ]]; then
    set_up_gpu
    return
  fi
  ensure_tools
  if [[ "$1" == matrix ]]; then ensure_clang; fi
  probe
  accel_cmake_arguments=(-G Ninja -DCMAKE_CXX_COMPILER="$CXX"
    -DCMAKE_PREFIX_PATH="$accel_debs_dir/usr")
  case "$1" in
    tests)
      libtorch_for_tests
      ensure_catch2
      ensure_launchers
      ;;
    matrix)
      libtorch_for_matrix
      ensure_catch2
      ;;
    benchmarks)
      libtorch_for_tests
      ensure_peers
      ;;
    *) libtorch_for_programs ;;
  esac
  ensure_nlohmann_json
  choose_jobs
  say "    compiler  $("$CXX" --version | head -n 1)"
  say "    CMake     $(cmake_version)"
  say "    LibTorch  $accel_libtorch"
}
