// Knock: how a rank comes into rank 0's star.
#pragma once

#include <poll.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/core/version.hpp>
#include <accel/launch/detail/address.hpp>
#include <accel/launch/detail/connection.hpp>
#include <accel/launch/detail/gathering.hpp>
#include <accel/launch/detail/greeting.hpp>
#include <accel/launch/detail/wire.hpp>
#include <accel/launch/peer.hpp>

namespace accel::inline v0_1::launch::detail {

/// Who has been let in, and what rank 0 said in the same breath.
struct Joined {
  Connection connection;
  Welcome welcome;
  std::vector<Message> more;
};

/// Rank 0 is not there yet, or has dropped this rank unheard, as where too many come at a time: it may knock again.
struct NotYet : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Until rank 0 says that all have come.
///
/// Throws   NotYet; ConfigError or CommError if rank 0 refuses; CommError if it says nothing until the deadline and a
///          moment more, in which it could say who is missing.
[[nodiscard]] inline Joined knock(const Peer& own, const StarTerms& terms, const std::vector<Address>& addresses,
                                  int port, Deadline deadline) {
  constexpr Seconds moment(0.5);
  Joined joined;
  try {
    // Of several addresses one may lead nowhere: it must not keep this rank from asking the others again.
    constexpr Seconds attempt(2);
    joined.connection =
        Connection(connect_to(addresses, port, Deadline::in(std::min<Seconds>(deadline.remaining(), attempt))));
  } catch (const CommError& nobody) {
    throw NotYet(nobody.what());
  }
  Connection& connection = joined.connection;
  connection.write(Hello::from(own.rank, terms));
  connection.write(introduction(own, terms.run_id));
  connection.flush();
  std::vector<Message> heard;
  bool asked = false;
  const Deadline end = Deadline::in(deadline.remaining() + moment);
  while (heard.empty()) {
    if (deadline.passed() && !std::exchange(asked, true)) {
      connection.write({Word::overdue, Packer().real(deadline.span_s()).take()});
      connection.flush();
    }
    ACCEL_CHECK(!end.passed(), CommError, "rendezvous: somebody is at ", terms.where, ", but within ",
                deadline.span_s(), " s has not said that all ranks have come, nor who is missing; the process of ",
                "rank 0 is stopped, has not come to its accelerator number ", terms.creation + 1,
                ", or another program has the port");
    pollfd ready{.fd = connection.number(), .events = POLLIN, .revents = 0};
    const auto most = deadline.passed() ? end.remaining() : deadline.remaining();
    if (::poll(&ready, 1, static_cast<int>(most.count())) <= 0) continue;  // the time is over, or a signal came
    if (!connection.read(Connection::read_budget, Connection::longest_message, heard) && heard.empty())
      throw NotYet("somebody is there, and hangs up without a word");
  }
  const Message& first = heard.front();
  Unpacker body(first.body);
  if (first.word == Word::other_version)
    throw NotYet(message("accel ", body.text(), " is there, and this is ", ACCEL_VERSION));
  if (first.word == Word::refuse) {
    const bool is_setting = body.number() != 0;
    Refusal{is_setting, std::string(body.text())}.raise();
  }
  ACCEL_CHECK(first.word == Word::welcome, CommError, "rendezvous: who answers at ", terms.where,
              " speaks in other words than rank 0");
  joined.welcome = Welcome::heard(first);
  joined.more.assign(std::make_move_iterator(heard.begin() + 1), std::make_move_iterator(heard.end()));
  return joined;
}

/// Knocks until it is let in: rank 0 may come later than this rank.
///
/// Throws   what rank 0 says; CommError at the deadline.
[[nodiscard]] inline Joined join(const Peer& own, const StarTerms& terms, const std::vector<Address>& addresses,
                                 int port, Deadline deadline) {
  std::string problem;
  for (std::chrono::milliseconds pause(10);; pause = std::min(2 * pause, std::chrono::milliseconds(200))) {
    try {
      return knock(own, terms, addresses, port, deadline);
    } catch (const NotYet& reason) {
      if (problem.empty() || !deadline.passed()) problem = reason.what();  // the last one ends by the time alone
    }
    ACCEL_CHECK(!deadline.passed(), CommError, "rendezvous: rank ", own.rank, " of ", own.world_size,
                " found no rank 0 at ", terms.where, " within ", deadline.span_s(),
                " s; is it running, and are MASTER_ADDR and MASTER_PORT right? What came of it: ", problem);
    std::this_thread::sleep_for(std::min(pause, deadline.remaining()));
  }
}

}  // namespace accel::inline v0_1::launch::detail
