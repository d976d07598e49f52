// What nobody has checked yet: a checkpoint's manifest. The input is its text behind the first line, whose checksum is
// always right here. Whatever it is, it is refused with a CheckpointError, or says the same when it is written again.
//
//   build/fuzz/tests/fuzz_manifest -max_total_time=3600 build/fuzz/manifest tests/fuzz/corpus/manifest
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>

#include <accel/checkpoint/manifest.hpp>
#include <accel/core/crc32c.hpp>
#include <accel/core/error.hpp>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using accel::checkpoint::Manifest;
  namespace detail = accel::checkpoint::detail;
  const std::string body(reinterpret_cast<const char*>(data), size);
  const auto sum = accel::crc32c(std::as_bytes(std::span(body)));
  try {
    const auto manifest = Manifest::parse(
        "input", accel::message(detail::before_checksum, detail::hex(sum), detail::behind_checksum, body));
    if (!(Manifest::parse("again", manifest.text()) == manifest)) std::abort();
  } catch (const accel::CheckpointError&) {
  }
  return 0;
}
