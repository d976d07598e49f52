// The two sides of the fork server, and the message between them.
#include "fork_server.hpp"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "process.hpp"
#include "ranks.hpp"

namespace accel::testing {
namespace {

// Names the server's end of the socket. environment_with drops it, so no fork takes itself for a server.
constexpr const char* socket_variable = "ACCEL_TEST_RANK_FORK_SERVER";

constexpr std::size_t largest_request = 200 << 10;  // below the usual limit of a message, 208 KiB

// What a fork is to run. On the wire: each string with its zero, an empty one between the two lists.
struct Request {
  std::vector<std::string> arguments, environment;
  int output = -1;  // file descriptor, sent beside the text
};

std::string text_of(const Request& request) {
  std::string text;
  for (const auto& argument : request.arguments) text.append(argument).push_back('\0');
  text.push_back('\0');
  for (const auto& entry : request.environment) text.append(entry).push_back('\0');
  return text;
}

Request request_from(std::string_view text, int output) {
  Request request{.arguments = {}, .environment = {}, .output = output};
  auto* strings = &request.arguments;
  while (!text.empty()) {
    const auto length = text.find('\0');
    if (length == 0) {
      strings = &request.environment;
    } else {
      strings->emplace_back(text.substr(0, length));
    }
    text.remove_prefix(length + 1);
  }
  return request;
}

// A message with room for one file descriptor beside its text.
struct Message {
  explicit Message(iovec text) : text_(text) {
    header.msg_iov = &text_;
    header.msg_iovlen = 1;
    header.msg_control = space_.data();
    header.msg_controllen = space_.size();
  }

  [[nodiscard]] cmsghdr* attachment() { return CMSG_FIRSTHDR(&header); }

  msghdr header{};

 private:
  iovec text_;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> space_{};
};

void send_request(int socket, const Request& request) {
  std::string text = text_of(request);
  if (text.size() > largest_request) throw std::runtime_error("the environment is too large for the fork server");
  Message message({.iov_base = text.data(), .iov_len = text.size()});
  cmsghdr* attachment = message.attachment();
  attachment->cmsg_level = SOL_SOCKET;
  attachment->cmsg_type = SCM_RIGHTS;
  attachment->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(attachment), &request.output, sizeof(int));
  if (::sendmsg(socket, &message.header, MSG_NOSIGNAL) < 0) throw_errno("sendmsg to the fork server");
}

// Nothing once the program has gone.
std::optional<Request> receive_request(int socket) {
  std::string text(largest_request, '\0');
  Message message({.iov_base = text.data(), .iov_len = text.size()});
  const ssize_t length = ::recvmsg(socket, &message.header, MSG_CMSG_CLOEXEC);
  const cmsghdr* attachment = message.attachment();
  if (length <= 0 || attachment == nullptr) return std::nullopt;
  int output = -1;
  std::memcpy(&output, CMSG_DATA(attachment), sizeof(int));
  return request_from(std::string_view(text).substr(0, static_cast<std::size_t>(length)), output);
}

// In the new process: waits for its adoption by the program, then becomes what the program would have started.
void settle(int socket, int output, pid_t foster_parent, pid_t program) {
  while (::getppid() == foster_parent) ::sched_yield();
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // only now: until the adoption the death of the foster parent would count
  if (::getppid() != program) ::_exit(127);
  const int nothing = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  ::dup2(nothing, STDIN_FILENO);
  ::dup2(output, STDOUT_FILENO);
  ::dup2(output, STDERR_FILENO);
  const pid_t own = ::getpid();
  if (::send(socket, &own, sizeof(own), MSG_NOSIGNAL) != sizeof(own)) ::_exit(127);
  ::close(socket);
  ::close(output);
  ::close(nothing);
}

// Forks twice: the program, which is the next reaper up, adopts the child of a child that has ended, and so can wait
// for it. True in the new process.
bool fork_for(pid_t program, int socket, int output) {
  const pid_t foster_parent = ::fork();
  if (foster_parent < 0) throw_errno("fork");
  if (foster_parent > 0) {
    ::waitpid(foster_parent, nullptr, 0);
    return false;
  }
  const pid_t own = ::getpid();
  const pid_t child = ::fork();
  if (child != 0) ::_exit(child < 0 ? 1 : 0);
  settle(socket, output, own, program);
  return true;
}

void become(std::vector<std::string> environment) {
  // Never destroyed: destructors of LibTorch's statics still read the environment.
  static auto& strings = *new std::vector<std::string>(std::move(environment));
  static auto& pointers = *new std::vector<char*>(pointers_to(strings));
  environ = pointers.data();
}

}  // namespace

ForkServer& ForkServer::instance() {
  static ForkServer server;
  return server;
}

ForkServer::ForkServer() : socket_(-1) {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0) throw_errno("socketpair");
  socket_ = ends[0];
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  ::fcntl(ends[1], F_SETFD, 0);  // the server inherits this one
  const auto environment = environment_with({{socket_variable, std::to_string(ends[1])}, {"OMP_NUM_THREADS", "1"}});
  [[maybe_unused]] const pid_t server = start_program({own_program()}, environment, STDERR_FILENO);
  ::close(ends[1]);
}

ForkServer::~ForkServer() {
  ::close(socket_);  // which ends the server
}

pid_t ForkServer::start(const std::vector<std::string>& arguments, const std::vector<std::string>& environment,
                        int output) {
  send_request(socket_, {.arguments = arguments, .environment = environment, .output = output});
  pid_t child = 0;
  if (::recv(socket_, &child, sizeof(child), 0) != sizeof(child))
    throw std::runtime_error("the fork server ended: it cannot be loaded, or has no memory");
  return child;
}

std::optional<std::vector<std::string>> serve_forks() {
  const char* number = std::getenv(socket_variable);
  if (number == nullptr) return std::nullopt;
  const int socket = std::stoi(number);
  ::fcntl(socket, F_SETFD, FD_CLOEXEC);
  const pid_t program = ::getppid();
  while (auto request = receive_request(socket)) {
    if (fork_for(program, socket, request->output)) {
      become(std::move(request->environment));
      return std::move(request->arguments);
    }
    ::close(request->output);
  }
  ::_exit(0);
}

}  // namespace accel::testing
