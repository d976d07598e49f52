// torchrun: the variables that PyTorch's elastic agent gives its workers.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include <accel/launch/launch.hpp>
#include <accel/launch/topology.hpp>
#include <accel/launch/variables.hpp>

namespace accel::inline v0_1::launch {

/// Nothing unless TORCHELASTIC_RUN_ID is set: torchrun always sets it, and nobody else does.
///
/// Throws   ConfigError if a variable is missing, malformed or contradicts another.
/// Source   torch/distributed/elastic/agent/server/local_elastic_agent.py, torch 2.11.
[[nodiscard]] inline std::optional<Launch> from_torchrun(const Variables& variables) {
  constexpr auto marker = "TORCHELASTIC_RUN_ID";
  if (!variables(marker)) return std::nullopt;
  Reader reader(variables,
                "torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, GROUP_RANK, MASTER_ADDR and "
                "MASTER_PORT: start through `torchrun --no-python`, or unset TORCHELASTIC_RUN_ID");
  const auto run_id = *reader.text(marker);
  const auto required = [&](auto value, const char* name) { return reader.required(std::move(value), name, marker); };

  Launch launch;
  launch.family = "torchrun";
  launch.topology.rank = required(reader.whole("RANK"), "RANK");
  launch.topology.world_size = required(reader.whole("WORLD_SIZE", 1), "WORLD_SIZE");
  launch.topology.local_rank = required(reader.whole("LOCAL_RANK"), "LOCAL_RANK");
  launch.topology.local_world_size = required(reader.whole("LOCAL_WORLD_SIZE", 1), "LOCAL_WORLD_SIZE");
  launch.topology.node_rank = required(reader.whole("GROUP_RANK"), "GROUP_RANK");
  launch.known = {.local_rank = true, .local_world_size = true, .node_rank = true};
  launch.master = Endpoint{required(reader.text("MASTER_ADDR"), "MASTER_ADDR"),
                           required(reader.whole("MASTER_PORT", 1, 65535), "MASTER_PORT")};
  // A restarted job may meet the keys of the failed one in the agent's store: it has others.
  const int restarts = reader.whole("TORCHELASTIC_RESTART_COUNT").value_or(0);
  launch.run_id = run_id + "-" + std::to_string(restarts);
  launch.agent_store = reader.text("TORCHELASTIC_USE_AGENT_STORE") == "True";  // Python's str
  check_consistent(launch, reader, {.node_rank = "GROUP_RANK"});
  launch.variables = reader.read();
  return launch;
}

}  // namespace accel::inline v0_1::launch
