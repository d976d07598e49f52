// SavedPlan: which gradients travel together, as text to keep and to start with the next time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <map>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/gradient/bucket_plan.hpp>

namespace accel::inline v0_1::gradient {

/// One line per bucket, in order: `0/layer3.bias 0/layer3.weight`, each parameter behind the number of its
/// model.
[[nodiscard]] inline std::string saved_plan(const std::vector<PlannedBucket>& buckets,
                                            const std::vector<std::string>& names) {
  std::string text;
  for (const auto& bucket : buckets) {
    for (const std::size_t i : bucket.parameters) text += (i == bucket.parameters.front() ? "" : " ") + names[i];
    text += "\n";
  }
  return text;
}

/// The order of parameters and the bucket of each, as a saved plan has them.
struct InstalledPlan {
  std::vector<std::size_t> order;
  std::vector<std::size_t> bucket_of;  // by parameter
};

/// `names` are those of the parameters that there are. What the text has besides belongs to models that are
/// prepared later.
///
/// Throws   InvalidArgument for a parameter that the plan lacks, or has twice.
[[nodiscard]] inline InstalledPlan installed_plan(const std::string& text, const std::vector<std::string>& names) {
  std::map<std::string, std::size_t> number_of;
  for (std::size_t i = 0; i < names.size(); ++i) number_of[names[i]] = i;
  constexpr auto missing = std::numeric_limits<std::size_t>::max();
  InstalledPlan plan{{}, std::vector<std::size_t>(names.size(), missing)};
  std::istringstream lines(text);
  std::size_t bucket = 0;
  for (std::string line; std::getline(lines, line); ++bucket) {
    std::istringstream words(line);
    for (std::string name; words >> name;) {
      const auto found = number_of.find(name);
      if (found == number_of.end()) continue;
      ACCEL_CHECK(plan.bucket_of[found->second] == missing, InvalidArgument, "gradient.plan: ", name,
                  " stands in it twice; save the plan again: accelerator.bucket_plan()");
      plan.bucket_of[found->second] = bucket;
      plan.order.push_back(found->second);
    }
  }
  const auto lacking = std::find(plan.bucket_of.begin(), plan.bucket_of.end(), missing);
  ACCEL_CHECK(lacking == plan.bucket_of.end(), InvalidArgument,
              "gradient.plan: ", names[static_cast<std::size_t>(lacking - plan.bucket_of.begin())],
              " of a prepared model does not stand in it; save the plan again: accelerator.bucket_plan()");
  return plan;
}

}  // namespace accel::inline v0_1::gradient
