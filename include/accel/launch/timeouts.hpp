// Timeouts: how long ranks wait for each other, as variables say it for a job that is not to be compiled anew.
#pragma once

#include <optional>

#include <accel/launch/variables.hpp>

namespace accel::inline v0_1::launch {

/// Unset: nobody said. An option of the program goes before a variable, a variable before the default.
struct Timeouts {
  std::optional<double> rendezvous_s;  // ACCEL_RENDEZVOUS_TIMEOUT_S: until all ranks are there
  std::optional<double> collective_s;  // ACCEL_TIMEOUT_S: of a collective
  std::optional<double> heartbeat_s;   // ACCEL_HEARTBEAT_S: three of silence are a failure; 0: never
  std::optional<int>
      heartbeat_port;  // ACCEL_HEARTBEAT_PORT: where rank 0 listens under an agent, which has MASTER_PORT,
                       // and one more for each further accelerator. Else any that is free
};

/// Throws   ConfigError for what is no number, or cannot be waited for.
[[nodiscard]] inline Timeouts timeouts_from(const Variables& variables = process_environment()) {
  constexpr double least_s = 0.001;
  Reader reader(variables, "give seconds, as in 30 or 0.5, or unset it");
  Timeouts found;
  found.rendezvous_s = reader.real("ACCEL_RENDEZVOUS_TIMEOUT_S", least_s);
  found.collective_s = reader.real("ACCEL_TIMEOUT_S", least_s);
  found.heartbeat_s = reader.real("ACCEL_HEARTBEAT_S");
  Reader ports(variables, "give the number of a port, or unset it");
  found.heartbeat_port = ports.whole("ACCEL_HEARTBEAT_PORT", 1, 65535);
  return found;
}

}  // namespace accel::inline v0_1::launch
