// Rounds: when every optimizer has stepped once, so that the loss scale is updated once for all of them.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

namespace accel::inline v0_1::precision {

/// Optimizers that share a loss scale take their steps in rounds. A round is over when each that is in use has
/// stepped, or skipped, once; or when one comes a second time: then those that did not come are not in use until
/// they step again. So a discriminator and a generator that alternate are one round, an optimizer that is alone has
/// one for each step, and one that never steps holds up nobody.
///
/// Differs  Accelerate updates the scale inside of each optimizer's step: twice as often with two, and between the
///          backward of the second and its step.
class Rounds {
 public:
  struct Participant {
    bool has_stepped = false;  // in this round
    bool is_in_use = true;
  };

  /// What ends with a step: the round before it, the round that it belongs to, or both.
  struct Ends {
    bool before = false;
    bool after = false;
    bool operator==(const Ends&) const = default;
  };

  /// One more optimizer, in use as long as the pointer lives.
  [[nodiscard]] std::shared_ptr<Participant> join() {
    auto participant = std::make_shared<Participant>();
    participants_.emplace_back(participant);
    return participant;
  }

  [[nodiscard]] Ends step(Participant& who) {
    std::erase_if(participants_, [](const auto& one) { return one.expired(); });
    Ends ends;
    ends.before = who.has_stepped;
    if (ends.before) {
      for_each([](Participant& one) { one.is_in_use = one.is_in_use && one.has_stepped; });
      begin();
    }
    who.has_stepped = who.is_in_use = true;
    ends.after = true;
    for_each([&](Participant& one) { ends.after = ends.after && (one.has_stepped || !one.is_in_use); });
    if (ends.after) begin();
    return ends;
  }

  /// A round begins; of the one before nobody will hear.
  void begin() {
    for_each([](Participant& one) { one.has_stepped = false; });
  }

 private:
  template <class Visitor>
  void for_each(Visitor&& visitor) {
    for (const auto& weak : participants_)
      if (const auto one = weak.lock()) visitor(*one);
  }

  std::vector<std::weak_ptr<Participant>> participants_;
};

}  // namespace accel::inline v0_1::precision
