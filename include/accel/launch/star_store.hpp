// StarStore: LibTorch's Store over the star, for Gloo, whose ranks find each other by one.
#pragma once

#include <chrono>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/launch/detail/shelf.hpp>
#include <accel/launch/star.hpp>

namespace accel::inline v0_1::launch {

/// Values by name, kept by rank 0 for as long as its star lives.
///
/// Throws   CommError where there is no value at the end of the timeout, or a rank has failed.
/// Differs  from c10d's TCPStore: needs no connection of its own, asks no name server, and is open to the ranks only.
class StarStore final : public c10d::Store {
 public:
  explicit StarStore(std::shared_ptr<Star> star) : star_(std::move(star)) {}

  c10::intrusive_ptr<c10d::Store> clone() override { return c10::make_intrusive<StarStore>(star_); }

  using c10d::Store::compareSet;
  using c10d::Store::set;

  void set(const std::string& key, const std::vector<std::uint8_t>& value) override {
    (void)ask({.kind = Kind::set, .key = key, .value = text(value)});
  }
  std::vector<std::uint8_t> compareSet(const std::string& key, const std::vector<std::uint8_t>& expected,
                                       const std::vector<std::uint8_t>& value) override {
    return bytes(ask({.kind = Kind::swap, .key = key, .value = text(value), .expected = text(expected)}));
  }
  std::vector<std::uint8_t> get(const std::string& key) override { return bytes(ask({.kind = Kind::get, .key = key})); }
  std::int64_t add(const std::string& key, std::int64_t amount) override {
    return std::stoll(ask({.kind = Kind::add, .key = key, .amount = amount}));
  }
  bool deleteKey(const std::string& key) override { return ask({.kind = Kind::remove, .key = key}) == "1"; }
  bool check(const std::vector<std::string>& keys) override {
    for (const auto& key : keys)
      if (ask({.kind = Kind::check, .key = key}) != "1") return false;
    return true;
  }
  std::int64_t getNumKeys() override { return std::stoll(ask({.kind = Kind::count})); }
  void wait(const std::vector<std::string>& keys) override { wait(keys, timeout_); }
  void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds& timeout) override {
    const Deadline deadline = Deadline::in(timeout == kNoTimeout ? Seconds(INFINITY) : Seconds(timeout));
    for (const auto& key : keys) (void)ask({.kind = Kind::get, .key = key}, deadline);
  }

 private:
  using Kind = detail::Inquiry::Kind;

  static std::string text(const std::vector<std::uint8_t>& bytes) { return {bytes.begin(), bytes.end()}; }
  static std::vector<std::uint8_t> bytes(const std::string& text) { return {text.begin(), text.end()}; }

  std::string ask(const detail::Inquiry& inquiry) { return ask(inquiry, Deadline::in(timeout_)); }

  std::string ask(const detail::Inquiry& inquiry, Deadline deadline) {
    auto answer = star_->ask(inquiry, deadline);
    if (answer) return *std::move(answer);
    const std::string failure = star_->failure();
    throw CommError(message("no value of ", inquiry.key, " after ", deadline.span_s(), " s",
                            failure.empty() ? "" : ": " + failure));
  }

  std::shared_ptr<Star> star_;
};

}  // namespace accel::inline v0_1::launch
