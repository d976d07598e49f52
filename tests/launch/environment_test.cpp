#include <cstdlib>
#include <map>
#include <optional>
#include <string>
#include <string_view>

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
  CHECK(launch.run_id == "default");
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
        "run id: default\n"
        "read: no variables\n");
  CHECK(describe(detect(plain)) ==
        "launched by: environment variables\n"
        "rank: 1 of 4\n"
        "local rank: ? of ?, node: ? (? is found out by host, at the rendezvous)\n"
        "master: 10.0.0.1:29500, store run by rank 0\n"
        "run id: default\n"
        "read: RANK=1 WORLD_SIZE=4 MASTER_ADDR=10.0.0.1 MASTER_PORT=29500\n");
  CHECK(describe(detect(torchrun)) ==
        "launched by: torchrun\n"
        "rank: 3 of 4\n"
        "local rank: 1 of 2, node: 1\n"
        "master: node0:41321, store run by the launcher\n"
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
