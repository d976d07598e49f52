// Exchanges: on rank 0, what the ranks have brought to which exchange, and who has not come. No sockets, no clock.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/launch/detail/wire.hpp>
#include <accel/launch/peer.hpp>

namespace accel::inline v0_1::launch::detail {

/// Which exchange, of which group.
struct ExchangeKey {
  std::string group;
  std::int64_t number = 0;

  auto operator<=>(const ExchangeKey&) const = default;

  void pack(Packer& body) const { body.text(group).number(number); }
  [[nodiscard]] static ExchangeKey unpacked(Unpacker& body) {
    ExchangeKey key{std::string(body.text()), 0};
    key.number = body.number();
    return key;
  }
};

/// What a rank brings to an exchange of its group.
struct Contribution {
  ExchangeKey key;
  std::string purpose;            // equal on all members
  std::int64_t root = everybody;  // whose value all get; nobody's: all only meet
  std::int64_t index = 0;         // of this rank in the group
  std::int64_t size = 1;          // of the group
  std::string value;

  static constexpr std::int64_t everybody = -1;
  static constexpr std::int64_t nobody = -2;

  [[nodiscard]] std::string packed() const {
    Packer body;
    key.pack(body);
    return body.text(purpose).number(root).number(index).number(size).text(value).take();
  }

  [[nodiscard]] static Contribution unpacked(std::string_view bytes) {
    Unpacker body(bytes);
    Contribution own;
    own.key = ExchangeKey::unpacked(body);
    own.purpose = body.text();
    own.root = body.number();
    own.index = body.number();
    own.size = body.number();
    own.value = body.text();
    return own;
  }
};

/// An exchange takes too long for one of its members: who is missing? Or, of those who have left?
struct Inquest {
  ExchangeKey key;
  std::string purpose;
  bool of_leavers = false;
  double seconds = 0;
  std::vector<int> members;  // ranks of the job; none: all

  [[nodiscard]] std::string packed() const {
    Packer body;
    key.pack(body);
    body.text(purpose).number(of_leavers ? 1 : 0).real(seconds);
    for (const int member : members) body.number(member);
    return body.take();
  }

  [[nodiscard]] static Inquest unpacked(std::string_view bytes) {
    Unpacker body(bytes);
    Inquest own;
    own.key = ExchangeKey::unpacked(body);
    own.purpose = body.text();
    own.of_leavers = body.number() != 0;
    own.seconds = body.real();
    while (!body.is_over()) own.members.push_back(static_cast<int>(body.number()));
    return own;
  }
};

/// Values in the order of the members, as one text; and back.
[[nodiscard]] inline std::string joined(const std::vector<std::string>& values) {
  Packer packer;
  for (const auto& value : values) packer.text(value);
  return packer.take();
}
[[nodiscard]] inline std::vector<std::string> parted(std::string_view text) {
  std::vector<std::string> values;
  for (Unpacker body(text); !body.is_over();) values.emplace_back(body.text());
  return values;
}

class Exchanges {
 public:
  /// What everybody who is in `to` (by rank of the job) gets.
  struct Result {
    ExchangeKey key;
    std::vector<int> to;
    std::string value;

    [[nodiscard]] std::string packed() const {
      Packer body;
      key.pack(body);
      return body.text(value).take();
    }
  };

  /// Rank `from` of the job brings something: what comes of it, for whom, once all have come.
  ///
  /// Throws   std::runtime_error with a sentence if the members are not in the same exchange.
  [[nodiscard]] Result bring(int from, Contribution own) {
    auto [place, is_first] = open_.try_emplace(own.key);
    Entry& entry = place->second;
    if (is_first) {
      entry.purpose = own.purpose;
      entry.first = from;
      entry.root = own.root;
      entry.values.resize(static_cast<std::size_t>(own.size));
      entry.ranks.assign(static_cast<std::size_t>(own.size), nobody);
    }
    if (entry.purpose != own.purpose || entry.root != own.root || own.index < 0 ||
        own.index >= static_cast<std::int64_t>(entry.ranks.size()))
      throw std::runtime_error(message("the ranks are not in the same exchange: rank ", entry.first, " is in ",
                                       entry.purpose, ", rank ", from, " in ", own.purpose,
                                       "; every rank must call the same, in the same order"));
    const auto index = static_cast<std::size_t>(own.index);
    entry.ranks[index] = from;
    entry.values[index] = std::move(own.value);
    ++entry.came;
    Result result{own.key, {}, {}};
    if (entry.came < entry.ranks.size()) return result;
    result.to = entry.ranks;
    if (entry.root == Contribution::everybody)
      result.value = joined(entry.values);
    else if (entry.root >= 0)
      result.value = entry.values.at(static_cast<std::size_t>(entry.root));
    open_.erase(place);
    return result;
  }

  /// Those of `members` (ranks of the job, in the order of the group) for whom that exchange waits.
  [[nodiscard]] std::vector<int> missing(const ExchangeKey& key, const std::vector<int>& members) const {
    const auto found = open_.find(key);
    if (found == open_.end()) return {};
    const Entry& entry = found->second;
    std::vector<int> missing;
    for (std::size_t i = 0; i < members.size() && i < entry.ranks.size(); ++i)
      if (entry.ranks[i] == nobody) missing.push_back(members[i]);
    return missing;
  }

  [[nodiscard]] std::size_t open() const { return open_.size(); }

 private:
  static constexpr int nobody = -1;

  struct Entry {
    std::string purpose;
    int first = 0;  // who came first
    std::int64_t root = Contribution::everybody;
    std::size_t came = 0;
    std::vector<std::string> values;  // by index in the group
    std::vector<int> ranks;           // of the job; nobody: has not come
  };

  std::map<ExchangeKey, Entry> open_;
};

}  // namespace accel::inline v0_1::launch::detail
