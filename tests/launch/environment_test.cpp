#include <cstdlib>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <accel/core/error.hpp>
#include <accel/launch/environment.hpp>

namespace {

using accel::launch::Endpoint;
using accel::launch::Launch;
using accel::launch::Topology;
using accel::launch::Variables;
using Values = std::map<std::string, std::string, std::less<>>;

Variables fake(Values values) {
  return [values = std::move(values)](std::string_view name) -> std::optional<std::string> {
    const auto found = values.find(name);
    if (found == values.end()) return std::nullopt;
    return found->second;
  };
}

Launch detect(Values values) {
  return accel::launch::detect(fake(std::move(values)));
}

/// `base` with some values replaced; an empty optional removes.
Values with(Values base, const std::map<std::string, std::optional<std::string>>& changes) {
  for (const auto& [name, value] : changes) {
    base.erase(name);
    if (value) base.emplace(name, *value);
  }
  return base;
}

const Values plain{{"RANK", "1"}, {"WORLD_SIZE", "4"}, {"MASTER_ADDR", "10.0.0.1"}, {"MASTER_PORT", "29500"}};

const Values local = with(plain, {{"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "2"}, {"NODE_RANK", "0"}});

const Values torchrun{{"RANK", "3"},
                      {"WORLD_SIZE", "4"},
                      {"LOCAL_RANK", "1"},
                      {"LOCAL_WORLD_SIZE", "2"},
                      {"GROUP_RANK", "1"},
                      {"MASTER_ADDR", "node0"},
                      {"MASTER_PORT", "41321"},
                      {"TORCHELASTIC_RUN_ID", "job7"},
                      {"TORCHELASTIC_RESTART_COUNT", "2"},
                      {"TORCHELASTIC_USE_AGENT_STORE", "True"}};

/// Refused, with each of these in the message.
void check_refused(const Values& values, std::initializer_list<std::string_view> parts) {
  std::string found = "(accepted)";
  try {
    (void)detect(values);
  } catch (const accel::ConfigError& error) {
    found = error.what();
  }
  for (const auto part : parts) CHECK_THAT(found, Catch::Matchers::ContainsSubstring(std::string(part)));
}

}  // namespace

TEST_CASE("no variable at all is one process", "[launch]") {
  const auto launch = detect({});
  CHECK(launch.family == "single process");
  CHECK(launch.topology == Topology{});
  CHECK(launch.local_known());
  CHECK_FALSE(launch.master.has_value());
  CHECK_FALSE(launch.agent_store);
  CHECK(launch.variables.empty());
}

TEST_CASE("a left-over master address or node rank alone is no launch", "[launch]") {
  CHECK(detect({{"MASTER_ADDR", "10.0.0.1"}, {"MASTER_PORT", "29500"}}).family == "single process");
  CHECK(detect({{"MASTER_ADDR", ""}}).family == "single process");
  CHECK(detect({{"NODE_RANK", "3"}}).family == "single process");
}

TEST_CASE("plain variables without local ones leave those to the rendezvous", "[launch]") {
  const auto launch = detect(plain);
  CHECK(launch.family == "environment variables");
  CHECK(launch.topology == Topology{.rank = 1, .world_size = 4});
  CHECK_FALSE(launch.local_known());
  CHECK_FALSE(launch.known.local_rank);
  CHECK_FALSE(launch.known.local_world_size);
  CHECK_FALSE(launch.known.node_rank);
  CHECK(launch.master == Endpoint{"10.0.0.1", 29500});
  CHECK(launch.run_id.empty());
  CHECK_FALSE(launch.agent_store);
}

TEST_CASE("plain variables with local ones settle everything", "[launch]") {
  const auto launch = detect(local);
  CHECK(launch.local_known());
  CHECK(launch.topology ==
        Topology{.rank = 1, .world_size = 4, .local_rank = 1, .local_world_size = 2, .node_rank = 0});
}

TEST_CASE("each local variable is optional on its own", "[launch]") {
  const auto rank_only = detect(with(plain, {{"LOCAL_RANK", "1"}}));
  CHECK(rank_only.known.local_rank);
  CHECK_FALSE(rank_only.known.local_world_size);
  CHECK_FALSE(rank_only.local_known());
  CHECK(rank_only.topology.local_rank == 1);

  const auto size_only = detect(with(plain, {{"LOCAL_WORLD_SIZE", "2"}}));
  CHECK(size_only.topology.local_world_size == 2);
  CHECK_FALSE(size_only.local_known());

  const auto group_only = detect(with(plain, {{"GROUP_RANK", "1"}}));
  CHECK(group_only.topology.node_rank == 1);
  CHECK(group_only.known.node_rank);
}

TEST_CASE("all ranks on one host need no node rank", "[launch]") {
  const auto launch = detect(with(plain, {{"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "4"}}));
  CHECK(launch.local_known());
  CHECK(launch.topology.node_rank == 0);
}

TEST_CASE("a run id of the user's is taken as it is", "[launch]") {
  CHECK(detect(with(plain, {{"ACCEL_RUN_ID", "night 4"}})).run_id == "night 4");
}

TEST_CASE("a world of one needs neither rank nor master", "[launch]") {
  for (const Values& values : {Values{{"WORLD_SIZE", "1"}}, Values{{"WORLD_SIZE", "1"}, {"RANK", "0"}}}) {
    const auto launch = detect(values);
    CHECK(launch.family == "environment variables");
    CHECK(launch.topology == Topology{});
    CHECK(launch.local_known());
    CHECK_FALSE(launch.master.has_value());
  }
  const auto launch = detect(with(plain, {{"RANK", "0"}, {"WORLD_SIZE", "1"}}));
  CHECK(launch.master == Endpoint{"10.0.0.1", 29500});
}

TEST_CASE("torchrun's variables are recognised before the plain ones", "[launch]") {
  const auto launch = detect(with(torchrun, {{"ACCEL_RUN_ID", "not for torchrun"}}));
  CHECK(launch.family == "torchrun");
  CHECK(launch.topology ==
        Topology{.rank = 3, .world_size = 4, .local_rank = 1, .local_world_size = 2, .node_rank = 1});
  CHECK(launch.local_known());
  CHECK(launch.master == Endpoint{"node0", 41321});
  CHECK(launch.agent_store);
}

TEST_CASE("a restarted torchrun job has another run id", "[launch]") {
  const auto run_id = [](std::optional<std::string> restarts) {
    return detect(with(torchrun, {{"TORCHELASTIC_RESTART_COUNT", std::move(restarts)}})).run_id;
  };
  CHECK(run_id("2") == "job7-2");
  CHECK(run_id("3") == "job7-3");
  CHECK(run_id(std::nullopt) == "job7-0");
}

TEST_CASE("only Python's True means that torchrun's agent runs the store", "[launch]") {
  CHECK_FALSE(detect(with(torchrun, {{"TORCHELASTIC_USE_AGENT_STORE", "False"}})).agent_store);
  CHECK_FALSE(detect(with(torchrun, {{"TORCHELASTIC_USE_AGENT_STORE", std::nullopt}})).agent_store);
}

TEST_CASE("ACCEL_ variables go before every launcher's, and those are named", "[launch]") {
  const auto launch = detect(with(torchrun, {{"ACCEL_RANK", "1"},
                                             {"ACCEL_WORLD_SIZE", "3"},
                                             {"ACCEL_MASTER_ADDR", "192.168.1.100"},
                                             {"ACCEL_MASTER_PORT", "29501"},
                                             {"SLURM_STEP_ID", "0"}}));
  CHECK(launch.family == "ACCEL_ variables");
  CHECK(launch.topology == Topology{.rank = 1, .world_size = 3});
  CHECK(launch.master == Endpoint{"192.168.1.100", 29501});
  CHECK(launch.left_over == std::vector<std::string>{"torchrun", "environment variables", "SLURM"});
  CHECK_THAT(describe(launch), Catch::Matchers::ContainsSubstring(
                                   "not asked, though variables of theirs are set: torchrun environment variables"));
  check_refused({{"ACCEL_WORLD_SIZE", "2"}}, {"ACCEL_WORLD_SIZE = \"2\" is set, but ACCEL_RANK is not"});
  check_refused(
      {{"ACCEL_RANK", "2"}, {"ACCEL_WORLD_SIZE", "2"}, {"ACCEL_MASTER_ADDR", "a"}, {"ACCEL_MASTER_PORT", "1"}},
      {"ACCEL_RANK = \"2\" is not below ACCEL_WORLD_SIZE = \"2\""});
}

namespace {

const Values slurm{{"SLURM_JOB_ID", "77"},
                   {"SLURM_STEP_ID", "4"},
                   {"SLURM_PROCID", "3"},
                   {"SLURM_NTASKS", "9"},  // of the job
                   {"SLURM_STEP_NUM_TASKS", "5"},
                   {"SLURM_LOCALID", "1"},
                   {"SLURM_NODEID", "1"},
                   {"SLURM_STEP_TASKS_PER_NODE", "2(x2),1"},
                   {"SLURM_STEP_NODELIST", "gpu[08-10]"}};

const Values open_mpi{{"OMPI_COMM_WORLD_RANK", "1"},
                      {"OMPI_COMM_WORLD_SIZE", "2"},
                      {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                      {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                      {"PMIX_RANK", "1"},
                      {"PMIX_NAMESPACE", "2002911233"}};

}  // namespace

TEST_CASE("a SLURM step has its own counts, its first host and a port of its own", "[launch]") {
  const auto launch = detect(slurm);
  CHECK(launch.family == "SLURM");
  CHECK(launch.topology ==
        Topology{.rank = 3, .world_size = 5, .local_rank = 1, .local_world_size = 2, .node_rank = 1});
  CHECK(launch.local_known());
  REQUIRE(launch.master);
  CHECK(launch.master->host == "gpu08");
  CHECK(launch.master->port ==
        detect(with(slurm, {{"SLURM_PROCID", "4"}, {"SLURM_LOCALID", "0"}, {"SLURM_NODEID", "2"}})).master->port);
  CHECK(launch.master->port != detect(with(slurm, {{"SLURM_STEP_ID", "5"}})).master->port);
  CHECK(launch.run_id == "slurm-77.4-0");
  CHECK(detect(with(slurm, {{"MASTER_ADDR", "head"}, {"MASTER_PORT", "1234"}})).master == Endpoint{"head", 1234});
  CHECK(
      detect(with(slurm, {{"SLURM_STEP_NODELIST", "gpu08"}, {"SLURM_STEP_TASKS_PER_NODE", "5"}, {"SLURM_NODEID", "0"}}))
          .master->host == "127.0.0.1");
  // In the batch script itself there is no step: one process.
  CHECK(detect(with(slurm, {{"SLURM_STEP_ID", std::nullopt}})).family == "single process");

  check_refused(with(slurm, {{"SLURM_PROCID", "5"}}),
                {"SLURM_PROCID = \"5\" is not below SLURM_STEP_NUM_TASKS", "srun"});
  check_refused(with(slurm, {{"SLURM_STEP_TASKS_PER_NODE", "2(x"}}), {"SLURM_STEP_TASKS_PER_NODE = \"2(x\""});
  check_refused(with(slurm, {{"SLURM_STEP_NODELIST", "gpu[8-"}}), {"\"gpu[8-\" is malformed"});
  for (const char* name : {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NODEID",
                           "SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_NODELIST", "SLURM_JOB_ID"})
    check_refused(with(slurm, {{name, std::nullopt}}),
                  {std::string("SLURM_STEP_ID = \"4\" is set, but ") + name + " is not"});
}

TEST_CASE("SLURM's lists are expanded", "[launch]") {
  using accel::launch::expand_counts;
  using accel::launch::expand_host_list;
  using Names = std::vector<std::string>;
  CHECK(expand_host_list("a") == Names{"a"});
  CHECK(expand_host_list("a,b.c-d") == Names{"a", "b.c-d"});
  CHECK(expand_host_list("gpu[08-10,12],login") == Names{"gpu08", "gpu09", "gpu10", "gpu12", "login"});
  CHECK(expand_host_list("r[1-2]n[3,5]x") == Names{"r1n3x", "r1n5x", "r2n3x", "r2n5x"});
  CHECK(expand_host_list("n[098-101]") == Names{"n098", "n099", "n100", "n101"});
  for (const char* bad :
       {"", "a,", "a[", "a]", "a[1", "a[]", "a[1-]", "a[x]", "a[[1]]", "a[1-9999999999]", "a[0-200000]"})
    CHECK_THROWS_AS(expand_host_list(bad), accel::ConfigError);
  CHECK(expand_counts("2(x3),1") == std::vector<int>{2, 2, 2, 1});
  CHECK(expand_counts("4") == std::vector<int>{4});
  for (const char* bad : {"", "x", "2(", "2(x", "2(x)", "2(x1", "0", "2(x0)", ",", "2,,1", "-1"})
    CHECK(expand_counts(bad).empty());
}

TEST_CASE("MPI's launchers: sizes from their variables, loopback on one host", "[launch]") {
  const auto launch = detect(open_mpi);
  CHECK(launch.family == "Open MPI");
  CHECK(launch.topology == Topology{.rank = 1, .world_size = 2, .local_rank = 1, .local_world_size = 2});
  CHECK(launch.local_known());
  CHECK(launch.master->host == "127.0.0.1");
  CHECK(launch.run_id == "2002911233");
  CHECK(launch.left_over.empty());  // PMIx is part of it
  CHECK(launch.master->port != detect(with(open_mpi, {{"PMIX_NAMESPACE", "2002911234"}})).master->port);

  const Values hydra{{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}, {"MPI_LOCALRANKID", "1"}, {"MPI_LOCALNRANKS", "2"}};
  CHECK(detect(hydra).family == "PMI");
  CHECK(detect(hydra).topology == launch.topology);
  const Values mvapich{{"MV2_COMM_WORLD_RANK", "1"},
                       {"MV2_COMM_WORLD_SIZE", "2"},
                       {"MV2_COMM_WORLD_LOCAL_RANK", "1"},
                       {"MV2_COMM_WORLD_LOCAL_SIZE", "2"}};
  CHECK(detect(mvapich).family == "MVAPICH");
  CHECK(detect(mvapich).topology == launch.topology);

  // Several hosts, or nobody knows: the user says where rank 0 is.
  const Values two_hosts = with(open_mpi, {{"OMPI_COMM_WORLD_SIZE", "4"}});
  check_refused(two_hosts, {"MASTER_ADDR is not set", "Open MPI"});
  CHECK(detect(with(two_hosts, {{"MASTER_ADDR", "a"}, {"MASTER_PORT", "2"}})).master == Endpoint{"a", 2});
  check_refused({{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}}, {"MASTER_ADDR is not set"});
  check_refused({{"PMI_RANK", "1"}}, {"PMI_RANK = \"1\" is set, but PMI_SIZE is not"});
  check_refused(with(open_mpi, {{"OMPI_COMM_WORLD_RANK", "2"}}),
                {"OMPI_COMM_WORLD_RANK = \"2\" is not below OMPI_COMM_WORLD_SIZE = \"2\""});

  // PMIx gives a rank only.
  check_refused({{"PMIX_RANK", "1"}}, {"PMIX_RANK = \"1\" is set, but WORLD_SIZE is not"});
  const auto pmix = detect({{"PMIX_RANK", "1"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "a"}});
  CHECK(pmix.family == "PMIx");
  CHECK(pmix.topology == Topology{.rank = 1, .world_size = 2});
}

TEST_CASE("of several launchers the one nearest to the process is asked", "[launch]") {
  const auto both = [](Values outer, const Values& inner) {
    outer.insert(inner.begin(), inner.end());
    return detect(std::move(outer));
  };
  const auto torchrun_in_slurm = both(slurm, torchrun);
  CHECK(torchrun_in_slurm.family == "torchrun");
  CHECK(torchrun_in_slurm.left_over == std::vector<std::string>{"SLURM"});
  CHECK(both(slurm, open_mpi).family == "Open MPI");  // mpirun starts its daemons by srun
  CHECK(both(slurm, plain).family == "environment variables");
  // What a batch script exports for others is no rank.
  CHECK(detect(with(slurm, {{"WORLD_SIZE", "9"}, {"LOCAL_RANK", "7"}})).family == "SLURM");
  // srun --mpi=pmi2 says the same twice; hydra's proxies in a step of their own do not.
  CHECK(both(slurm, {{"PMI_RANK", "3"}, {"PMI_SIZE", "5"}}).family == "SLURM");
  CHECK(
      both(slurm, {{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}, {"MPI_LOCALNRANKS", "2"}, {"MPI_LOCALRANKID", "1"}}).family ==
      "PMI");
}

TEST_CASE("half of the plain variables is an error that names the missing one", "[launch]") {
  check_refused({{"RANK", "0"}}, {"RANK = \"0\" is set, but WORLD_SIZE is not", "unset RANK"});
  check_refused({{"WORLD_SIZE", "2"}}, {"WORLD_SIZE = \"2\" is set, but RANK is not"});
  check_refused(with(plain, {{"MASTER_ADDR", std::nullopt}}),
                {"MASTER_PORT = \"29500\" is set, but MASTER_ADDR is not"});
  check_refused(with(plain, {{"MASTER_PORT", std::nullopt}}),
                {"MASTER_ADDR = \"10.0.0.1\" is set, but MASTER_PORT is not"});
  check_refused(with(plain, {{"MASTER_ADDR", std::nullopt}, {"MASTER_PORT", std::nullopt}}),
                {"WORLD_SIZE = \"4\" is set, but MASTER_ADDR is not", "set RANK, WORLD_SIZE, MASTER_ADDR"});
  check_refused({{"WORLD_SIZE", "1"}, {"MASTER_ADDR", "10.0.0.1"}}, {"MASTER_PORT is not"});
}

TEST_CASE("local variables alone are an error: each rank would run by itself", "[launch]") {
  check_refused({{"LOCAL_RANK", "1"}}, {"LOCAL_RANK = \"1\" is set, but RANK and WORLD_SIZE are not", "unset"});
  check_refused({{"LOCAL_WORLD_SIZE", "2"}}, {"LOCAL_WORLD_SIZE = \"2\" is set"});
}

TEST_CASE("each of torchrun's variables is required", "[launch]") {
  for (const char* name :
       {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"}) {
    check_refused(
        with(torchrun, {{name, std::nullopt}}),
        {std::string("TORCHELASTIC_RUN_ID = \"job7\" is set, but ") + name + " is not", "torchrun --no-python"});
  }
}

TEST_CASE("what is not a whole number is quoted", "[launch]") {
  for (const char* name : {"RANK", "WORLD_SIZE", "MASTER_PORT", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK"}) {
    for (const char* value : {"x", "1x", " 1", "1.5", "+1", "0x1", "-"}) {
      const std::string text = accel::message(name, " = \"", value, "\" is not a whole number");
      check_refused(with(local, {{name, value}}), {text});
    }
  }
}

TEST_CASE("numbers that no job can have are quoted with what is possible", "[launch]") {
  check_refused(with(plain, {{"RANK", "-1"}}), {"RANK = \"-1\" is not from 0 to"});
  check_refused(with(plain, {{"RANK", "99999999999"}}), {"RANK = \"99999999999\" is not from 0 to 2147483647"});
  check_refused(with(plain, {{"WORLD_SIZE", "0"}}), {"WORLD_SIZE = \"0\" is not from 1 to"});
  check_refused(with(local, {{"LOCAL_WORLD_SIZE", "0"}}), {"LOCAL_WORLD_SIZE = \"0\" is not from 1 to"});
  check_refused(with(plain, {{"MASTER_PORT", "0"}}), {"MASTER_PORT = \"0\" is not from 1 to 65535"});
  check_refused(with(plain, {{"MASTER_PORT", "65536"}}), {"MASTER_PORT = \"65536\" is not from 1 to 65535"});
}

TEST_CASE("an empty variable is an error", "[launch]") {
  for (const auto& [name, unused] : local) check_refused(with(local, {{name, ""}}), {name + " is set, but empty"});
  for (const auto& [name, unused] : torchrun) {
    check_refused(with(torchrun, {{name, ""}}), {name + " is set, but empty"});
  }
}

TEST_CASE("variables that contradict each other are both quoted", "[launch]") {
  check_refused(with(plain, {{"RANK", "4"}}), {"RANK = \"4\" is not below WORLD_SIZE = \"4\""});
  check_refused({{"WORLD_SIZE", "1"}, {"RANK", "1"}}, {"RANK = \"1\" is not below WORLD_SIZE = \"1\""});
  check_refused(with(local, {{"LOCAL_WORLD_SIZE", "5"}}), {"LOCAL_WORLD_SIZE = \"5\" is more than WORLD_SIZE = \"4\""});
  check_refused(with(local, {{"RANK", "3"}, {"LOCAL_RANK", "2"}}),
                {"LOCAL_RANK = \"2\" is not below LOCAL_WORLD_SIZE = \"2\""});
  check_refused(with(plain, {{"LOCAL_RANK", "2"}}), {"LOCAL_RANK = \"2\" is more than RANK = \"1\""});
  check_refused(with(local, {{"NODE_RANK", "3"}}), {"NODE_RANK = \"3\" is too large for LOCAL_WORLD_SIZE = \"2\""});
  check_refused(with(plain, {{"GROUP_RANK", "4"}}), {"GROUP_RANK = \"4\" is too large for WORLD_SIZE = \"4\""});
  check_refused(with(local, {{"GROUP_RANK", "1"}}), {"NODE_RANK = \"0\" is not GROUP_RANK = \"1\""});
  CHECK_NOTHROW(detect(with(local, {{"GROUP_RANK", "0"}})));

  check_refused(with(torchrun, {{"RANK", "4"}}), {"RANK = \"4\" is not below WORLD_SIZE = \"4\"", "torchrun"});
  check_refused(with(torchrun, {{"LOCAL_RANK", "2"}}), {"LOCAL_RANK = \"2\" is not below LOCAL_WORLD_SIZE"});
  check_refused(with(torchrun, {{"GROUP_RANK", "3"}}), {"GROUP_RANK = \"3\" is too large"});
}

TEST_CASE("every rank of a regular job is accepted", "[launch]") {
  for (int nodes = 1; nodes <= 3; ++nodes) {
    for (int per_node = 1; per_node <= 3; ++per_node) {
      for (int rank = 0; rank < nodes * per_node; ++rank) {
        const Topology expected{.rank = rank,
                                .world_size = nodes * per_node,
                                .local_rank = rank % per_node,
                                .local_world_size = per_node,
                                .node_rank = rank / per_node};
        const auto launch = detect(with(torchrun, {{"RANK", std::to_string(rank)},
                                                   {"WORLD_SIZE", std::to_string(nodes * per_node)},
                                                   {"LOCAL_RANK", std::to_string(rank % per_node)},
                                                   {"LOCAL_WORLD_SIZE", std::to_string(per_node)},
                                                   {"GROUP_RANK", std::to_string(rank / per_node)}}));
        CHECK(launch.topology == expected);
      }
    }
  }
}

TEST_CASE("a description says what was detected, and from which variables", "[launch]") {
  CHECK(describe(detect({})) ==
        "launched by: single process\n"
        "rank: 0 of 1\n"
        "local rank: 0 of 1, node: 0\n"
        "master: none, one process needs none\n"
        "run id: none given\n"
        "read: no variables\n");
  CHECK(describe(detect(plain)) ==
        "launched by: environment variables\n"
        "rank: 1 of 4\n"
        "local rank: ? of ?, node: ? (? is found out by host, at the rendezvous)\n"
        "master: 10.0.0.1:29500, where rank 0 listens\n"
        "run id: none given\n"
        "read: RANK=1 WORLD_SIZE=4 MASTER_ADDR=10.0.0.1 MASTER_PORT=29500\n");
  CHECK(describe(detect(torchrun)) ==
        "launched by: torchrun\n"
        "rank: 3 of 4\n"
        "local rank: 1 of 2, node: 1\n"
        "master: node0:41321, a store of the launcher's\n"
        "run id: job7-2\n"
        "read: TORCHELASTIC_RUN_ID=job7 RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 "
        "GROUP_RANK=1 "
        "MASTER_ADDR=node0 MASTER_PORT=41321 TORCHELASTIC_RESTART_COUNT=2 "
        "TORCHELASTIC_USE_AGENT_STORE=True\n");
}

TEST_CASE("the process environment is read as it is", "[launch]") {
  ::setenv("ACCEL_TEST_SET", "value", 1);
  ::setenv("ACCEL_TEST_EMPTY", "", 1);
  const auto variables = accel::launch::process_environment();
  CHECK(variables("ACCEL_TEST_SET") == "value");
  CHECK(variables("ACCEL_TEST_EMPTY") == "");
  CHECK_FALSE(variables("ACCEL_TEST_UNSET").has_value());
  ::unsetenv("ACCEL_TEST_SET");
  ::unsetenv("ACCEL_TEST_EMPTY");
}
