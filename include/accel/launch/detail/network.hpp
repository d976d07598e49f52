// Network: who this host is.
#pragma once

#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <ios>
#include <string>
#include <system_error>

#include <accel/core/error.hpp>
#include <accel/core/hash.hpp>

namespace accel::inline v0_1::launch::detail {

inline std::string host_name() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

/// Boot and network namespace: two processes that agree in it reach each other by loopback. Names of
/// hosts are no such proof: cloned machines share them, containers of one machine do not.
inline std::string network_name() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  std::error_code unknown;
  const std::string space = std::filesystem::read_symlink("/proc/self/ns/net", unknown).string();
  if (boot.empty() || space.empty()) return host_name();
  return message(std::hex, fnv1a(boot + "/" + space) >> 4U);  // every rank keeps everybody's: short, and as good
}

}  // namespace accel::inline v0_1::launch::detail
