// SaveEvent: what is told to those who want to hear of saves and loads.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>

namespace accel::inline v0_1::checkpoint {

/// What hooks of a save or a load are given.
struct SaveEvent {
  std::filesystem::path folder;  // before a save: where files may be added; else the checkpoint
  std::int64_t step = 0;
  int rank = 0;
};
using SaveHook = std::function<void(const SaveEvent&)>;

}  // namespace accel::inline v0_1::checkpoint
