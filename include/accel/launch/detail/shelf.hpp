// Shelf: on rank 0, values by name, and who waits for which. No sockets, no clock.
#pragma once

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <accel/launch/detail/wire.hpp>

namespace accel::inline v0_1::launch::detail {

/// What a rank asks of the shelf. Answers are texts; of yes or no "1" or "0".
struct Inquiry {
  enum class Kind : std::uint8_t {
    set,     // key is `value` from now on
    get,     // the value of key, once there is one
    check,   // is there one?
    add,     // `amount` to the number that it is, from 0; gives the sum
    swap,    // `value` in place of `expected`, or of nothing if that is empty; gives what is there now
    remove,  // was there one?
    count,   // how many there are
  };
  Kind kind{};
  std::string key{};
  std::string value{};
  std::string expected{};
  std::int64_t amount = 0;

  [[nodiscard]] std::string packed(std::int64_t id) const {
    return Packer()
        .number(id)
        .number(static_cast<std::int64_t>(kind))
        .text(key)
        .text(value)
        .text(expected)
        .number(amount)
        .take();
  }

  [[nodiscard]] static std::pair<std::int64_t, Inquiry> unpacked(std::string_view bytes) {
    Unpacker body(bytes);
    const std::int64_t id = body.number();
    Inquiry own;
    own.kind = static_cast<Kind>(body.number());
    own.key = body.text();
    own.value = body.text();
    own.expected = body.text();
    own.amount = body.number();
    return {id, std::move(own)};
  }
};

class Shelf {
 public:
  struct Reply {
    int to = 0;
    std::int64_t id = 0;
    std::string value;
  };

  /// What is to be said, to who asks or to those that have waited for this.
  [[nodiscard]] std::vector<Reply> ask(int from, std::int64_t id, const Inquiry& inquiry) {
    using enum Inquiry::Kind;
    const auto found = values_.find(inquiry.key);
    const bool is_there = found != values_.end();
    const auto answer = [&](std::string value) { return std::vector<Reply>{{from, id, std::move(value)}}; };
    if (inquiry.kind == set) {
      auto released = put(inquiry.key, inquiry.value);
      released.push_back({from, id, {}});
      return released;
    }
    if (inquiry.kind == get) {
      if (is_there) return answer(found->second);
      waiting_[inquiry.key].push_back({from, id, {}});
      return {};
    }
    if (inquiry.kind == add) {
      std::int64_t number = 0;
      if (is_there) std::from_chars(found->second.data(), found->second.data() + found->second.size(), number);
      const std::string sum = std::to_string(number + inquiry.amount);
      auto released = put(inquiry.key, sum);
      released.push_back({from, id, sum});
      return released;
    }
    if (inquiry.kind == swap) {
      if (is_there ? found->second != inquiry.expected : !inquiry.expected.empty())
        return answer(is_there ? found->second : inquiry.expected);
      auto released = put(inquiry.key, inquiry.value);
      released.push_back({from, id, inquiry.value});
      return released;
    }
    if (inquiry.kind == remove) {
      if (is_there) values_.erase(found);
      return answer(is_there ? "1" : "0");
    }
    return answer(inquiry.kind == count ? std::to_string(values_.size()) : is_there ? "1" : "0");
  }

 private:
  [[nodiscard]] std::vector<Reply> put(const std::string& key, const std::string& value) {
    values_[key] = value;
    const auto found = waiting_.find(key);
    if (found == waiting_.end()) return {};
    std::vector<Reply> released = std::move(found->second);
    waiting_.erase(found);
    for (auto& reply : released) reply.value = value;
    return released;
  }

  std::map<std::string, std::string> values_;
  std::map<std::string, std::vector<Reply>> waiting_;
};

}  // namespace accel::inline v0_1::launch::detail
