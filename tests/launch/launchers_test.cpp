// Launchers for real: the same program, started by each of them. README's recipes are these lines.
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <string>
#include <vector>

#include <ATen/ops/full.h>
#include <accel/accelerator.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/ranks.hpp"

using accel::testing::exact_filter;
using accel::testing::own_program;
using accel::testing::ProcessResult;
using accel::testing::ReservedPort;
using accel::testing::run_program;
using accel::testing::Seconds;
using accel::testing::skip_without;
using ProgramVariables = accel::testing::Variables;
using Catch::Matchers::ContainsSubstring;
using Accelerator = accel::Accelerator<accel::backend::Gloo, accel::precision::Fp32>;
namespace fs = std::filesystem;

namespace {

constexpr int not_possible = 77;  // our scripts' exit code, with a reason in the output

bool installed(const std::string& program) {
  return run_program({"bash", "-c", "command -v " + program}, {}).succeeded();
}

/// `program filter`, quoted for a shell: the hidden test case below.
std::string a_rank() {
  return "'" + own_program() + "' '" + exact_filter("hidden: a rank of some launcher") + "'";
}

/// Runs a shell's line and checks that every rank was there, of that family, and that they reached each other.
void check_ranks(const std::string& line, const std::string& family, int world_size, ProgramVariables variables = {},
                 const std::string& what = "namespaces") {
  variables.emplace_back("OMP_NUM_THREADS", "1");
  const ProcessResult result = run_program({"bash", "-c", line}, {.deadline = Seconds(600), .variables = variables});
  INFO(line << "\n" << result.output);
  if (result.exit_code == not_possible) skip_without(what, result.output.substr(result.output.rfind("skipped: ") + 9));
  CHECK(result.succeeded());
  const int sum = world_size * (world_size + 1) / 2;
  for (int rank = 0; rank < world_size; ++rank)
    CHECK_THAT(result.output,
               ContainsSubstring(accel::message("rank ", rank, " of ", world_size, " by ", family, ", sum ", sum)));
  std::cout << "$ " << line << "\n" << result.output;
}

/// A PATH on which the torchrun of the tests' Python is found, or nothing.
ProgramVariables torchrun_path() {
  const fs::path tools = fs::path(ACCEL_TEST_PYTHON).parent_path();
  if (!fs::exists(tools / "torchrun"))
    skip_without("torchrun", "no torchrun: configure with -DACCEL_TEST_PYTHON=<python that has torch>");
  return {{"PATH", tools.string() + ":" + std::getenv("PATH")}};
}

}  // namespace

TEST_CASE("hidden: a rank of some launcher", "[.][launch]") {
  for (int i = 0; i < 2; ++i) {
    Accelerator accelerator;
    const auto launch = accel::launch::detect();
    CHECK(launch.agent_store == (launch.family == "torchrun"));
    const auto sum = accelerator.reduce(at::full({}, accelerator.rank() + 1), accel::Reduction::sum).item<int>();
    if (std::getenv("HOST_INDEX") != nullptr) CHECK(accelerator.local_rank() == 0);
    std::cout << accel::message("rank ", accelerator.rank(), " of ", accelerator.world_size(), " by ", launch.family,
                                ", sum ", sum, "\n")
              << std::flush;
  }
}

TEST_CASE("torchrun starts ranks, which meet in its agent's store", "[launch]") {
  auto variables = torchrun_path();
  const ReservedPort port;
  variables.emplace_back("PET_MASTER_PORT", std::to_string(port.number()));
  check_ranks("torchrun --nproc-per-node 2 --no-python " + a_rank(), "torchrun", 2, variables);
}

TEST_CASE("Open MPI's mpirun starts ranks", "[launch]") {
  if (!installed("mpirun.openmpi")) skip_without("mpi", "Open MPI is not installed (Debian: openmpi-bin)");
  check_ranks("mpirun.openmpi --allow-run-as-root --oversubscribe -n 2 " + a_rank(), "Open MPI", 2);
}

TEST_CASE("MPICH's mpiexec starts ranks", "[launch]") {
  if (!installed("mpiexec.hydra")) skip_without("mpi", "MPICH is not installed (Debian: mpich)");
  const ReservedPort port;  // PMI has no number of the job to make one from
  check_ranks("mpiexec.hydra -n 2 " + a_rank(), "PMI", 2, {{"MASTER_PORT", std::to_string(port.number())}});
}

TEST_CASE("srun starts ranks", "[launch]") {
  check_ranks(ACCEL_TEST_DIR "/launch/with_slurm.sh srun -n 2 --overcommit " + a_rank(), "SLURM", 2, {}, "slurm");
}

TEST_CASE("torchrun inside of a SLURM step starts ranks", "[launch]") {
  auto variables = torchrun_path();
  const ReservedPort port;
  variables.emplace_back("PET_MASTER_PORT", std::to_string(port.number()));
  check_ranks(ACCEL_TEST_DIR "/launch/with_slurm.sh srun -n 1 torchrun --nproc-per-node 2 --no-python " + a_rank(),
              "torchrun", 2, variables, "slurm");
}

TEST_CASE("three machines, each started by itself with ACCEL_ variables", "[launch]") {
  check_ranks(ACCEL_TEST_DIR
                  "/launch/three_hosts.sh \"ACCEL_RANK=\\$HOST_INDEX ACCEL_WORLD_SIZE=3 "
                  "ACCEL_MASTER_ADDR=192.168.1.100 ACCEL_MASTER_PORT=29500 " +
                  a_rank() + "\"",
              "ACCEL_ variables", 3);
}

TEST_CASE("three machines meet by their IPv6 addresses", "[launch]") {
  check_ranks(ACCEL_TEST_DIR
                  "/launch/three_hosts.sh \"ACCEL_RANK=\\$HOST_INDEX ACCEL_WORLD_SIZE=3 "
                  "ACCEL_MASTER_ADDR=fd00::100 ACCEL_MASTER_PORT=29500 " +
                  a_rank() + "\"",
              "ACCEL_ variables", 3);
}

TEST_CASE("three machines, each started by itself with torchrun", "[launch]") {
  check_ranks(ACCEL_TEST_DIR
                  "/launch/three_hosts.sh \"torchrun --nnodes 3 --node-rank \\$HOST_INDEX "
                  "--nproc-per-node 1 --master-addr 192.168.1.100 --master-port 29500 --no-python " +
                  a_rank() + "\"",
              "torchrun", 3, torchrun_path());
}
