// What nobody has checked yet: the header of a safetensors file. The input is a line that says how many bytes of data
// follow, and the header's text. Whatever it is, it is refused with a CheckpointError, or what it describes is the data.
//
//   build/fuzz/tests/fuzz_header -max_total_time=3600 build/fuzz/header tests/fuzz/corpus/header
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include <accel/core/error.hpp>
#include <accel/tensor/detail/safetensors_header.hpp>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  namespace safetensors = accel::tensor::safetensors;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::size_t line = input.find('\n');
  std::uint64_t data_size = 0;
  if (line == std::string_view::npos ||
      std::from_chars(input.data(), input.data() + line, data_size).ptr != input.data() + line)
    return -1;  // nothing to learn from
  try {
    const auto header = safetensors::detail::parse_header("input", input.substr(line + 1), data_size);
    std::uint64_t bytes = 0;
    for (const auto& [name, entry] : header.entries) {
      if (entry.begin > entry.end || entry.end > data_size) std::abort();
      bytes += entry.end - entry.begin;
    }
    if (bytes != data_size) std::abort();  // a hole, or an overlap
  } catch (const accel::CheckpointError&) {
  }
  return 0;
}
