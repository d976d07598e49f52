// Forecast: which parameters the next reduction will find used, from what the last ones found.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace accel::inline v0_1::gradient {

/// Used sets, numbered as they come up, and the one that is expected next: what followed the last eight
/// the last time they came in this order, or else what followed the last one. So loops that alternate
/// between models are expected as well as those that do the same in every step.
///
/// All ranks learn the same sets and therefore expect the same ones, without a word.
///
/// Source   prediction by partial matching, Cleary & Witten 1984, with two lengths of context.
class Forecast {
 public:
  using UsedSet = std::vector<std::uint8_t>;  // by parameter: 1 if some rank has something to reduce

  /// At first everything is expected: set number 0.
  explicit Forecast(std::size_t parameters = 0) : sets_{UsedSet(parameters, 1)} {}

  [[nodiscard]] std::size_t size() const { return sets_.size(); }
  [[nodiscard]] const UsedSet& set(std::size_t number) const { return sets_[number]; }

  /// The number of the set that was learnt last.
  [[nodiscard]] std::size_t last() const { return history_.back(); }
  /// The number of the set that is expected.
  [[nodiscard]] std::size_t next() const { return next_; }

  /// What the reduction has found. Sets keep their numbers until size() becomes smaller.
  ///
  /// Cost     a comparison of a byte per parameter where it was what was expected.
  void learn(std::span<const std::uint8_t> used) {
    const auto is = [&](const UsedSet& set) { return std::equal(set.begin(), set.end(), used.begin(), used.end()); };
    const auto known = is(sets_[guess_]) ? sets_.begin() + static_cast<std::ptrdiff_t>(guess_)
                                         : std::find_if(sets_.begin(), sets_.end(), is);
    const auto number = static_cast<std::size_t>(known - sets_.begin());
    surprise_ = number == guess_ ? std::max(surprise_ - 1, 0) : std::min(surprise_ + 4, most_surprise);
    if (known == sets_.end()) {
      if (sets_.size() == most_sets) return forget();
      sets_.emplace_back(used.begin(), used.end());
    }
    if (number != guess_ || after_all_.find(key()) == after_all_.end()) {
      after_all_[key()] = number;
      after_one_[history_.back()] = number;
      if (after_all_.size() > most_followers) return forget();
    }
    std::move(history_.begin() + 1, history_.end(), history_.begin());
    history_.back() = number;
    guess_ = expected();
    next_ = surprise_ > unpredictable ? 0 : guess_;
  }

  /// All that it has learnt, as numbers, for another one to go on with.
  [[nodiscard]] std::vector<std::int64_t> memory() const {
    std::vector<std::int64_t> numbers;
    const auto put = [&](auto number) { numbers.push_back(static_cast<std::int64_t>(number)); };
    put(sets_.front().size());
    put(sets_.size());
    for (const UsedSet& set : sets_) std::for_each(set.begin(), set.end(), put);
    std::for_each(history_.begin(), history_.end(), put);
    const auto put_map = [&](const auto& map) {
      put(map.size());
      for (const auto& [key, value] : map) put(key), put(value);
    };
    put_map(after_all_);
    put_map(after_one_);
    put(guess_);
    put(next_);
    put(surprise_);
    return numbers;
  }

  /// The one whose memory() that was; nothing if it cannot have been one of so many parameters.
  [[nodiscard]] static std::optional<Forecast> of(std::span<const std::int64_t> numbers, std::size_t parameters) {
    Forecast result(parameters);
    bool fits = true;
    const auto take = [&](std::uint64_t most) -> std::uint64_t {
      fits = fits && !numbers.empty() && static_cast<std::uint64_t>(numbers.front()) <= most;
      if (!fits) return 0;
      const auto number = static_cast<std::uint64_t>(numbers.front());
      numbers = numbers.subspan(1);
      return number;
    };
    if (take(parameters) != parameters || !fits) return std::nullopt;
    result.sets_.assign(take(most_sets), UsedSet(parameters));
    if (!fits || result.sets_.empty()) return std::nullopt;
    const std::uint64_t last = result.sets_.size() - 1;
    for (UsedSet& set : result.sets_)
      for (auto& used : set) used = static_cast<std::uint8_t>(take(1));
    for (auto& number : result.history_) number = take(last);
    const auto take_map = [&](auto& map) {
      for (std::uint64_t left = take(most_followers); left > 0 && fits; --left) {
        const std::uint64_t key = take(~std::uint64_t{0});
        map[key] = take(last);
      }
    };
    take_map(result.after_all_);
    take_map(result.after_one_);
    result.guess_ = take(last);
    result.next_ = take(last);
    result.surprise_ = static_cast<int>(take(most_surprise));
    return fits && numbers.empty() ? std::optional(std::move(result)) : std::nullopt;
  }

 private:
  static constexpr std::size_t most_sets = 64;
  static constexpr std::size_t most_followers = 1024;
  static constexpr int unpredictable = 24;  // as with layers that are left out at random: wait for everything
  static constexpr int most_surprise = 2 * unpredictable;

  [[nodiscard]] std::size_t expected() const {
    if (const auto found = after_all_.find(key()); found != after_all_.end()) return found->second;
    if (const auto found = after_one_.find(history_.back()); found != after_one_.end()) return found->second;
    return history_.back();
  }

  [[nodiscard]] std::uint64_t key() const {
    std::uint64_t hash = 0;
    constexpr std::uint64_t golden = 0x9e3779b97f4a7c15U;  // Fibonacci hashing
    for (const std::size_t number : history_) hash = (hash + number + 1) * golden;
    return hash;
  }

  /// There are too many to remember.
  void forget() {
    sets_.resize(1);
    after_all_.clear();
    after_one_.clear();
    history_.fill(0);
    next_ = guess_ = 0;
  }

  std::vector<UsedSet> sets_;
  std::array<std::size_t, 8> history_{};            // numbers of the last sets, the newest last
  std::map<std::uint64_t, std::size_t> after_all_;  // by the whole history
  std::map<std::size_t, std::size_t> after_one_;    // by the last one
  std::size_t guess_ = 0;
  std::size_t next_ = 0;  // the guess, where guesses are mostly right
  int surprise_ = 0;
};

}  // namespace accel::inline v0_1::gradient
