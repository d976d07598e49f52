// AgentStore: the store that torchrun's agent serves, by which the ranks learn where rank 0 listens.
#pragma once

#include <cstdint>
#include <exception>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <accel/core/error.hpp>
#include <accel/core/units.hpp>
#include <accel/core/version.hpp>
#include <accel/launch/detail/wire.hpp>
#include <accel/launch/launch.hpp>
#include <accel/launch/no_sigpipe.hpp>
#include <accel/launch/within.hpp>

namespace accel::inline v0_1::launch::detail {

/// Where rank 0 listens, and the word by which ranks know each other.
struct StarPlace {
  int port = 0;
  std::string token{};
  std::vector<std::string> addresses{};

  [[nodiscard]] std::vector<std::uint8_t> packed() const {
    Packer packer;
    packer.number(port).text(token);
    for (const auto& address : addresses) packer.text(address);
    const std::string bytes = packer.take();
    return {bytes.begin(), bytes.end()};
  }

  [[nodiscard]] static StarPlace unpacked(const std::vector<std::uint8_t>& bytes) {
    const std::string text(bytes.begin(), bytes.end());
    Unpacker body(text);
    StarPlace place;
    place.port = static_cast<int>(body.number());
    place.token = body.text();
    while (!body.is_over()) place.addresses.emplace_back(body.text());
    return place;
  }
};

/// Of the `creation`-th accelerator. The version in the name: two versions in one program count by themselves.
[[nodiscard]] inline std::string key_of(const Launch& launch, std::int64_t creation) {
  return message("accel/", ACCEL_VERSION, "/", launch.run_id, "/", creation);
}

/// A client of it. LibTorch asks for the name of whom it connects to: with a slow name server that takes time.
///
/// Throws   CommError at the deadline.
class AgentStore {
 public:
  AgentStore(const Endpoint& master, Deadline deadline) : master_(master), deadline_(deadline) {
    c10d::TCPStoreOptions options;
    options.port = static_cast<std::uint16_t>(master.port);
    options.waitWorkers = false;
    options.timeout = deadline.remaining();
    store_ = ask([master, options] {
      const NoSigpipe guard;
      return c10::make_intrusive<c10d::TCPStore>(master.host, options);
    });
  }

  void put(const std::string& key, const StarPlace& place) {
    ask([store = store_, key, place] {
      store->set(key, place.packed());
      return true;
    });
  }

  [[nodiscard]] StarPlace get(const std::string& key) {
    return StarPlace::unpacked(ask([store = store_, key, deadline = deadline_] {
      store->wait({key}, deadline.remaining());
      return store->get(key);
    }));
  }

 private:
  template <class Body>
  std::invoke_result_t<Body> ask(Body body) {
    try {
      return within(deadline_, std::move(body));
    } catch (const std::exception& error) {
      throw CommError(message("rendezvous: the store of the launcher's agent at ", master_.host, ":", master_.port,
                              " gave no answer within ", deadline_.span_s(), " s, or rank 0 has not come; look at the ",
                              "output of rank 0. LibTorch says: ", first_line(error)));
    }
  }

  Endpoint master_;
  Deadline deadline_;
  c10::intrusive_ptr<c10d::TCPStore> store_;
};

}  // namespace accel::inline v0_1::launch::detail
