// Forecast: which parameters the next reduction will find used, from what the last ones found.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
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
    surprise_ = number == guess_ ? std::max(surprise_ - 1, 0) : std::min(surprise_ + 4, 2 * unpredictable);
    if (known == sets_.end()) {
      constexpr std::size_t most = 64;
      if (sets_.size() == most) return forget();
      sets_.emplace_back(used.begin(), used.end());
    }
    if (number != guess_ || after_all_.find(key()) == after_all_.end()) {
      after_all_[key()] = number;
      after_one_[history_.back()] = number;
      if (after_all_.size() > 1024) return forget();
    }
    std::move(history_.begin() + 1, history_.end(), history_.begin());
    history_.back() = number;
    guess_ = expected();
    next_ = surprise_ > unpredictable ? 0 : guess_;
  }

 private:
  static constexpr int unpredictable = 24;  // as with layers that are left out at random: wait for everything

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
  std::array<std::size_t, 8> history_{};                      // numbers of the last sets, the newest last
  std::unordered_map<std::uint64_t, std::size_t> after_all_;  // by the whole history
  std::unordered_map<std::size_t, std::size_t> after_one_;    // by the last one
  std::size_t guess_ = 0;
  std::size_t next_ = 0;  // the guess, where guesses are mostly right
  int surprise_ = 0;
};

}  // namespace accel::inline v0_1::gradient
