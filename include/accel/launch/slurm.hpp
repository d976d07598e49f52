// SLURM: the variables of a step, that is of what srun starts.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/launch/launch.hpp>
#include <accel/launch/topology.hpp>
#include <accel/launch/variables.hpp>

namespace accel::inline v0_1::launch {

/// SLURM's `gpu[08-10,12],login` as names: gpu08, gpu09, gpu10, gpu12, login. Numbers keep their width.
///
/// Throws   ConfigError if a bracket or a range is malformed.
[[nodiscard]] inline std::vector<std::string> expand_host_list(std::string_view text) {
  const auto refuse = [&] {
    throw ConfigError(message("the node list \"", text, "\" is malformed; expected names as in gpu[08-10,12],login"));
  };
  const auto number = [&](std::string_view digits) {
    if (digits.empty() || digits.size() > 9 || digits.find_first_not_of("0123456789") != std::string_view::npos)
      refuse();
    return std::stoi(std::string(digits));
  };
  // The items between commas that stand outside of brackets.
  const auto split = [&](std::string_view list) {
    std::vector<std::string_view> items;
    std::size_t begin = 0;
    int depth = 0;
    for (std::size_t i = 0; i <= list.size(); ++i) {
      if (i < list.size() && list[i] == '[') ++depth;
      if (i < list.size() && list[i] == ']') --depth;
      if (depth < 0 || depth > 1) refuse();
      if (i < list.size() && (list[i] != ',' || depth != 0)) continue;
      items.push_back(list.substr(begin, i - begin));
      begin = i + 1;
    }
    if (depth != 0) refuse();
    return items;
  };
  std::vector<std::string> hosts;
  for (std::string_view item : split(text)) {
    std::vector<std::string> names{""};
    while (!item.empty()) {
      const std::size_t open = std::min(item.find('['), item.size());
      for (auto& name : names) name += item.substr(0, open);
      item.remove_prefix(open);
      if (item.empty()) break;
      const std::size_t close = item.find(']');
      std::vector<std::string> numbers;
      for (const std::string_view range : split(item.substr(1, close - 1))) {
        const std::size_t dash = range.find('-');
        const std::string_view low = range.substr(0, dash);
        const std::string_view high = dash == std::string_view::npos ? low : range.substr(dash + 1);
        const int last = number(high);
        if (last - number(low) > 100'000) refuse();
        for (int i = number(low); i <= last; ++i) {
          const std::string digits = std::to_string(i);
          numbers.push_back(std::string(low.size() - std::min(low.size(), digits.size()), '0') + digits);
        }
      }
      std::vector<std::string> longer;
      for (const auto& name : names)
        for (const auto& digits : numbers) longer.push_back(name + digits);
      names = std::move(longer);
      item.remove_prefix(close + 1);
    }
    for (auto& name : names) {
      if (name.empty()) refuse();
      hosts.push_back(std::move(name));
    }
  }
  return hosts;
}

/// SLURM's `2(x3),1` as numbers: 2, 2, 2, 1. Empty if malformed.
[[nodiscard]] inline std::vector<int> expand_counts(std::string_view text) {
  std::vector<int> counts;
  while (!text.empty()) {
    const std::string_view item = text.substr(0, text.find(','));
    text.remove_prefix(std::min(item.size() + 1, text.size()));
    int count = 0;
    int times = 1;
    const char* const end = item.data() + item.size();
    auto [stop, error] = std::from_chars(item.data(), end, count);
    if (error == std::errc() && stop != end) {
      const std::string_view rest(stop, static_cast<std::size_t>(end - stop));
      if (!rest.starts_with("(x") || !rest.ends_with(")")) return {};
      const auto repeat = std::from_chars(stop + 2, end - 1, times);
      error = repeat.ptr == end - 1 ? repeat.ec : std::errc::invalid_argument;
    }
    if (error != std::errc() || count < 1 || times < 1 || times > 100'000) return {};
    counts.insert(counts.end(), static_cast<std::size_t>(times), count);
  }
  return counts;
}

/// Nothing unless SLURM_STEP_ID is set: a batch script's own process is no rank, only what srun starts.
///
/// Numbers are the step's, not the job's. Rank 0 is looked for on the first host of the step's list, where
/// SLURM's block and cyclic distributions put it; MASTER_ADDR and MASTER_PORT choose another.
///
/// Throws   ConfigError if a variable is missing, malformed or contradicts another.
/// Source   srun(1), "Output environment variables", SLURM 22.05.
[[nodiscard]] inline std::optional<Launch> from_slurm(const Variables& variables) {
  constexpr auto marker = "SLURM_STEP_ID";
  if (!variables(marker)) return std::nullopt;
  Reader reader(variables, "srun sets these for what it starts: use `srun ./trainer`, or unset SLURM_STEP_ID");
  const auto step = *reader.text(marker);
  const auto required = [&](auto value, const char* name) { return reader.required(std::move(value), name, marker); };
  const VariableNames names{"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE",
                            "SLURM_NODEID"};
  Launch launch;
  launch.family = "SLURM";
  Topology& topology = launch.topology;
  topology.rank = required(reader.whole(names.rank), "SLURM_PROCID");
  topology.world_size = required(reader.whole(names.world_size, 1), "SLURM_STEP_NUM_TASKS");
  topology.local_rank = required(reader.whole(names.local_rank), "SLURM_LOCALID");
  topology.node_rank = required(reader.whole(names.node_rank), "SLURM_NODEID");
  const auto tasks = expand_counts(required(reader.text(names.local_world_size), "SLURM_STEP_TASKS_PER_NODE"));
  if (tasks.empty() || static_cast<std::size_t>(topology.node_rank) >= tasks.size())
    reader.fail(reader.quote(names.local_world_size), " says nothing of node ", reader.quote(names.node_rank));
  topology.local_world_size = tasks[static_cast<std::size_t>(topology.node_rank)];
  launch.known = {.local_rank = true, .local_world_size = true, .node_rank = true};

  const auto job = required(reader.text("SLURM_JOB_ID"), "SLURM_JOB_ID");
  launch.run_id = message("slurm-", job, ".", step, "-", reader.whole("SLURM_RESTART_COUNT").value_or(0));
  check_consistent(launch, reader, names);
  if (topology.world_size > 1) {
    const auto nodes = expand_host_list(required(reader.text("SLURM_STEP_NODELIST"), "SLURM_STEP_NODELIST"));
    const auto host = reader.text("MASTER_ADDR");
    const auto port = reader.whole("MASTER_PORT", 1, 65535);
    const std::string first = nodes.size() == 1 ? "127.0.0.1" : nodes.front();
    launch.master = Endpoint{host.value_or(first), port.value_or(port_of_job(job + "." + step))};
  }
  launch.variables = reader.read();
  return launch;
}

}  // namespace accel::inline v0_1::launch
