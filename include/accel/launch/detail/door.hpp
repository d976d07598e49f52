// Door: where rank 0 listens for the others, one for all accelerators of the process.
#pragma once

#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <accel/core/error.hpp>
#include <accel/launch/detail/address.hpp>
#include <accel/launch/detail/clock.hpp>
#include <accel/launch/detail/connection.hpp>
#include <accel/launch/detail/descriptor.hpp>
#include <accel/launch/detail/wire.hpp>

namespace accel::inline v0_1::launch::detail {

/// Somebody who has connected, and may turn out to be a rank.
struct Visitor {
  Connection connection;
  Time came{};
  int rank = -1;                // once it has said hello
  std::int64_t creation = -1;   // the accelerator that it wants to, then
  std::vector<Message> said{};  // to who has handed it over to that one
};

/// Accelerators come and go; the door of a port stays until the process ends, so that nobody finds it closed who comes
/// for the next one. Whoever opens it to a visitor of another accelerator puts him into that one's room, where he
/// waits, maybe until there is such an accelerator.
class Door {
 public:
  /// A door of its own, at any free port or at that one.
  Door(const std::string& host, const std::vector<Address>& addresses, int port)
      : listener_(listen_at(doors(host, addresses), port)), place_(place_of(listener_)) {}

  /// The one of this process at the port of MASTER_ADDR.
  ///
  /// Throws   std::system_error if another process has it.
  [[nodiscard]] static std::shared_ptr<Door> of_process(const std::string& host, const std::vector<Address>& addresses,
                                                        int port) {
    static std::mutex mutex;
    static auto& all = *new std::map<int, std::shared_ptr<Door>>;  // outlives static destruction
    const std::lock_guard lock(mutex);
    auto& door = all[port];
    if (door == nullptr) door = shared_with_another_version(port);
    if (door == nullptr) {
      door = std::make_shared<Door>(host, addresses, port);
      door->label(port);
    }
    return door;
  }

  Door(const Door&) = delete;
  Door& operator=(const Door&) = delete;

  [[nodiscard]] int number() const { return listener_.number(); }
  [[nodiscard]] const Address& place() const { return place_; }

  /// The next one who stands outside; not open if there is nobody, errno says why.
  [[nodiscard]] Descriptor accept() const {
    return Descriptor(::accept4(listener_.number(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  }

  // Rooms, by the number of the accelerator. Any thread.

  /// `wake`: an eventfd that is written to when somebody has come in.
  void open_room(std::int64_t creation, int wake) {
    const std::lock_guard lock(mutex_);
    rooms_[creation].wake = wake;
  }

  /// Nobody comes in any more, who waits is dropped.
  void close_room(std::int64_t creation) {
    const std::lock_guard lock(mutex_);
    rooms_.erase(creation);
    closed_.insert(creation);
  }

  /// False if that accelerator has ended already. Of those whose accelerator is not there yet `most` may wait. Where
  /// there are more, who has waited for some time is dropped, or else the newcomer: a rank comes again.
  [[nodiscard]] bool put_into_room(Visitor& visitor, std::size_t most) {
    constexpr std::chrono::seconds patience(5);
    const std::lock_guard lock(mutex_);
    if (closed_.contains(visitor.creation)) return false;
    const Time now = Clock::now();
    const auto waiting = [&] {
      std::size_t count = 0;
      for (const auto& [creation, room] : rooms_) count += room.wake < 0 ? room.visitors.size() : 0;
      return count;
    };
    const auto known = rooms_.find(visitor.creation);
    if ((known == rooms_.end() || known->second.wake < 0) && waiting() >= most) {
      for (auto& [creation, room] : rooms_)
        if (room.wake < 0) std::erase_if(room.visitors, [&](const Visitor& one) { return now - one.came > patience; });
      std::erase_if(rooms_, [](const auto& room) { return room.second.wake < 0 && room.second.visitors.empty(); });
      if (waiting() >= most) return true;
    }
    Room& room = rooms_[visitor.creation];
    visitor.came = now;
    room.visitors.push_back(std::move(visitor));
    const std::uint64_t one = 1;
    // It fails only if the counter is full, and then the thread is awake anyway.
    if (room.wake >= 0 && ::write(room.wake, &one, sizeof one) < 0) return true;
    return true;
  }

  [[nodiscard]] std::vector<Visitor> take_from_room(std::int64_t creation) {
    const std::lock_guard lock(mutex_);
    return std::exchange(rooms_[creation].visitors, {});
  }

 private:
  struct Room {
    int wake = -1;  // none yet: there is no such accelerator
    std::vector<Visitor> visitors;
  };

  explicit Door(Descriptor listener) : listener_(std::move(listener)), place_(place_of(listener_)) {}

  // Two versions of accel in one program have each its own list of doors, but one port. What tells the second one of
  // the first one's is a name among the open files of the process.

  [[nodiscard]] static std::string label_of(int port) { return message("door-of-accel:", ::getpid(), ":", port, ":"); }

  void label(int port) {
    label_ = Descriptor(::memfd_create(message(label_of(port), listener_.number()).c_str(), MFD_CLOEXEC));
  }

  [[nodiscard]] static std::shared_ptr<Door> shared_with_another_version(int port) {
    const std::string words = "/memfd:" + label_of(port);
    std::error_code unreadable;
    for (const auto& file : std::filesystem::directory_iterator("/proc/self/fd", unreadable)) {
      const std::string name = std::filesystem::read_symlink(file.path(), unreadable).string();
      if (!name.starts_with(words)) continue;
      Descriptor listener(::dup(std::stoi(name.substr(words.size()))));
      if (listener.is_open()) return std::shared_ptr<Door>(new Door(std::move(listener)));
    }
    return nullptr;
  }

  Descriptor listener_;
  Address place_;
  Descriptor label_;
  std::mutex mutex_;
  std::map<std::int64_t, Room> rooms_;
  std::set<std::int64_t> closed_;  // of accelerators that have ended
};

}  // namespace accel::inline v0_1::launch::detail
