// Called: what a rank has called of a backend, whether waiting for it is in vain, and how a group ends by it.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>
#include <thread>

#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/launch/control_plane.hpp>

namespace accel::inline v0_1::backend::detail {

/// A collective or a message, as errors name it: put into words only then.
struct Called {
  std::string_view operation;  // a literal
  std::int64_t number = 0;     // among the collectives, or the messages; 0: it is neither
  Bytes bytes{};
  int peer = -1;  // of a message

  [[nodiscard]] bool is_message() const { return peer >= 0; }

  friend std::ostream& operator<<(std::ostream& out, const Called& call) {
    out << call.operation;
    if (call.number > 0) out << " number " << call.number << " of " << call.bytes;
    if (call.is_message()) out << (call.operation == "send" ? " to" : " from") << " rank " << call.peer;
    return out;
  }
};

/// A sentence about a rank that has left, and so may keep `call` from ever being over; else empty. Of a numbered
/// collective of the whole job it is known who has begun it.
[[nodiscard]] inline std::string departure_from(const launch::ControlPlane& control, const Called& call) {
  if (call.is_message()) return control.departure_of(call.peer);
  return call.number > 0 && control.is_whole() ? std::string() : control.departed_member();
}

/// Whether one wait is in vain: a rank has failed, one has left without this collective, a member of this part of the
/// job has left, or the other end of this message.
class Hope {
 public:
  [[nodiscard]] bool is_lost(const launch::ControlPlane& control, const Called& call) {
    if (control.failed()) return true;
    if (!call.is_message() && control.missed_by(call.number, 0)) return true;
    if (departure_from(control, call).empty()) return false;
    // What it had sent before may still be on its way.
    if (!moment_) moment_ = Deadline::in(Seconds(1));
    return moment_->passed();
  }

 private:
  std::optional<Deadline> moment_;
};

/// How a call has come to nothing.
struct Failing {
  std::string_view verb = "failed";
  std::optional<Deadline> late{};  // there was no answer until then
  std::string native{};            // what the engine says
};

/// What is told of a collective that is too late, beside who may be to blame.
inline constexpr std::string_view no_answer = "a peer has ended, hangs, or does not call the same operation";

/// What `reason` says of this very call; empty if it is about something else. Of a late collective all ranks say the
/// same, whoever of them has noticed first.
[[nodiscard]] inline std::string sentence_about(const Called& call, const std::string& reason) {
  if (reason.starts_with(message(call, " "))) return reason;
  const std::size_t late = call.is_message() ? std::string::npos : reason.find(message(call, " failed after"));
  return late == std::string::npos ? std::string() : reason.substr(late);
}

/// The one end of a group by a call: gives it up, and throws the sentence that every later call repeats. It names who
/// failed; else who has left; else, of a collective that is late, who is behind. Where somebody was first, another
/// thread or another rank, that reason is told.
[[noreturn]] inline void fail(launch::ControlPlane& control, const Called& call, const Failing& how) {
  std::string what = message(call, " ", how.verb);
  if (how.late) what += message(" after ", how.late->span_s(), " s without an answer");
  // A lost connection comes before the news of whose it was; at a deadline there was time enough for them.
  Hope hope;
  const Deadline news = Deadline::in(Seconds(0.5));
  while (!hope.is_lost(control, call) && !how.late && !news.passed())
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  if (const std::string reason = control.failure(); !reason.empty()) {
    std::string text = sentence_about(call, reason);
    if (text.empty()) text = message(what, ": ", reason);
    control.give_up(text);
    throw CommError(text);
  }
  if (!how.native.empty()) what += "; " + how.native;
  if (call.is_message() || (control.is_whole() && how.native.empty()))
    if (const std::string departure = departure_from(control, call); !departure.empty())
      what = message(what, ": ", departure);
  // What the engine itself has an error for is no suspicion of whoever may be slow.
  const bool asks = !call.is_message() && (how.late || control.missed_by(call.number, 0));
  control.fail(what, asks ? call.number : 0, 0, Seconds(0));
}

}  // namespace accel::inline v0_1::backend::detail
