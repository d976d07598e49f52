// Covering: rows of settings in which every two values of any two of them occur together.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <iterator>
#include <random>
#include <set>
#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

namespace accel::testing {

/// One value of each setting, counted from 0.
using CoveringRow = std::vector<int>;

/// As few rows as a greedy search finds, the same for the same seed. `levels`: how many values each setting has.
/// `is_possible`: of a row in which -1 is what is not chosen yet; pairs that no possible row has are left out.
///
/// Source   the greedy construction of AETG: Cohen, Dalal, Fredman & Patton 1997.
[[nodiscard]] inline std::vector<CoveringRow> covering_rows(
    const std::vector<int>& levels, const std::function<bool(const CoveringRow&)>& is_possible) {
  using Pair = std::tuple<std::size_t, int, std::size_t, int>;
  const std::size_t n = levels.size();
  const CoveringRow open(n, -1);
  std::set<Pair> left;
  for (std::size_t a = 0; a < n; ++a)
    for (std::size_t b = a + 1; b < n; ++b)
      for (int x = 0; x < levels[a]; ++x)
        for (int y = 0; y < levels[b]; ++y) {
          CoveringRow row = open;
          row[a] = x;
          row[b] = y;
          if (is_possible(row)) left.insert({a, x, b, y});
        }
  std::mt19937 random(1);
  const auto gain = [&](const CoveringRow& row, std::size_t at) {
    int pairs = 0;
    for (std::size_t other = 0; other < n; ++other)
      if (other != at && row[other] >= 0)
        pairs += static_cast<int>(other < at ? left.contains({other, row[other], at, row[at]})
                                             : left.contains({at, row[at], other, row[other]}));
    return pairs;
  };
  std::vector<CoveringRow> rows;
  while (!left.empty()) {
    CoveringRow best;
    std::size_t best_pairs = 0;
    for (int attempt = 0; attempt < 50; ++attempt) {
      CoveringRow row = open;
      const auto [a, x, b, y] = *std::next(left.begin(), static_cast<std::ptrdiff_t>(random() % left.size()));
      row[a] = x;
      row[b] = y;
      for (std::size_t at = 0; at < n; ++at) {
        if (row[at] >= 0) continue;
        int chosen = -1, most = -1;
        const int first = static_cast<int>(random() % static_cast<unsigned>(levels[at]));
        for (int k = 0; k < levels[at]; ++k) {
          row[at] = (first + k) % levels[at];
          if (is_possible(row) && gain(row, at) > most) {
            most = gain(row, at);
            chosen = row[at];
          }
        }
        row[at] = chosen;
        if (chosen < 0) break;  // what was chosen before leaves nothing for this one
      }
      std::size_t pairs = 0;
      for (const auto& [c, p, d, q] : left) pairs += static_cast<std::size_t>(row[c] == p && row[d] == q);
      const bool is_whole = std::find(row.begin(), row.end(), -1) == row.end();
      if (is_whole && pairs > best_pairs) {
        best = row;
        best_pairs = pairs;
      }
    }
    if (best.empty()) throw std::logic_error("no possible row has what is left");
    std::erase_if(left, [&](const Pair& pair) {
      const auto& [c, p, d, q] = pair;
      return best[c] == p && best[d] == q;
    });
    rows.push_back(best);
  }
  return rows;
}

}  // namespace accel::testing
