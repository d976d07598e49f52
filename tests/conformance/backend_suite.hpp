// The laws of a Backend, on real ranks. A backend's own test file says
//
//   ACCEL_BACKEND_SUITE(accel::backend::Gloo, {1, 2, 3})
//
// (ACCEL_BLOCKING_BACKEND_SUITE if its calls wait for the other ranks themselves) and adds what only that backend has.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <accel/backend/backend.hpp>
#include <accel/core/error.hpp>
#include <accel/tensor/spec.hpp>

// After LibTorch, whose own CHECK ends the program.
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "support/group.hpp"
#include "support/ranks.hpp"

namespace accel::testing::backend_suite {

using Catch::Matchers::ContainsSubstring;
using enum c10::ScalarType;

inline constexpr std::array dtypes = {Float, Double, Half, BFloat16, Long, Int, Byte};
/// What is only moved may be of any dtype.
inline constexpr std::array movable = {Float, Double, Half,  BFloat16, Long,         Int,
                                       Byte,  Char,   Short, Bool,     ComplexFloat, ComplexDouble};
inline constexpr std::array ops = {ReduceOp::sum, ReduceOp::max, ReduceOp::min};

/// Nothing, one element, odd sizes, several dimensions, and more than engines send in one piece.
inline const std::vector<std::vector<std::int64_t>>& shapes() {
  static const std::vector<std::vector<std::int64_t>> instance = {{}, {0}, {1}, {7}, {3, 0, 2}, {3, 5}, {70'001}};
  return instance;
}

/// 0, 1, ..., 6, 0, 1, ...: whole numbers so small that no dtype rounds what the ranks make of them.
inline at::Tensor base(const std::vector<std::int64_t>& shape) {
  std::int64_t numel = 1;
  for (const auto size : shape) numel *= size;
  return at::arange(numel).remainder(7).view(shape);
}

/// What `rank` brings to a collective.
inline at::Tensor brought(const std::vector<std::int64_t>& shape, c10::ScalarType dtype, c10::Device device, int rank) {
  return base(shape).add(rank + 1).to(device, dtype);
}

/// What a reduction over `world_size` ranks makes of it.
inline at::Tensor reduced(const std::vector<std::int64_t>& shape, c10::ScalarType dtype, c10::Device device,
                          int world_size, ReduceOp op) {
  at::Tensor result = base(shape);
  if (op == ReduceOp::sum) result = result * world_size + world_size * (world_size + 1) / 2;
  if (op == ReduceOp::max) result = result + world_size;
  if (op == ReduceOp::min) result = result + 1;
  return result.to(device, dtype);
}

inline bool same(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && at::equal(a, b);
}

template <Backend B>
void knows_who_it_is(Rank rank) {
  Group<B> group;
  CHECK(group->rank() == rank.rank);
  CHECK(group->world_size() == rank.world_size);
  CHECK(group->timeout().count() > 0);
}

template <Backend B>
void reduces(Rank rank) {
  Group<B> group;
  const auto device = group->device();
  for (const auto dtype : dtypes) {
    for (const auto& shape : shapes()) {
      for (const auto op : ops) {
        INFO(tensor::dtype_name(dtype) << " of " << at::IntArrayRef(shape) << ", operation " << static_cast<int>(op));
        at::Tensor tensor = brought(shape, dtype, device, rank.rank);
        auto work = group->all_reduce(tensor, op);
        work.wait();
        CHECK(work.done());
        CHECK(same(tensor, reduced(shape, dtype, device, rank.world_size, op)));
      }
    }
  }
}

template <Backend B>
void reduces_groups(Rank rank) {
  Group<B> group;
  const auto device = group->device();
  for (const auto op : ops) {
    std::vector<at::Tensor> tensors;
    for (const auto dtype : dtypes)
      for (const auto& shape : shapes()) tensors.push_back(brought(shape, dtype, device, rank.rank));
    auto work = group->all_reduce(std::span(tensors), op);
    work.wait();
    CHECK(work.done());
    std::size_t i = 0;
    for (const auto dtype : dtypes)
      for (const auto& shape : shapes()) CHECK(same(tensors[i++], reduced(shape, dtype, device, rank.world_size, op)));
  }
  std::vector<at::Tensor> none;
  auto work = group->all_reduce(std::span(none), ReduceOp::sum);
  work.wait();
  CHECK(work.done());
}

template <Backend B>
void broadcasts_from_every_rank(Rank rank) {
  Group<B> group;
  const auto device = group->device();
  for (int root = 0; root < rank.world_size; ++root) {
    for (const auto dtype : movable) {
      for (const auto& shape : shapes()) {
        INFO(tensor::dtype_name(dtype) << " of " << at::IntArrayRef(shape) << " from " << root);
        at::Tensor tensor = brought(shape, dtype, device, rank.rank);
        auto work = group->broadcast(tensor, root);
        work.wait();
        CHECK(same(tensor, brought(shape, dtype, device, root)));
      }
    }
  }
}

template <Backend B>
void gathers(Rank rank) {
  Group<B> group;
  const auto device = group->device();
  for (const auto dtype : movable) {
    for (const std::int64_t rows : {0, 1, 7, 20'001}) {
      std::vector<at::Tensor> parts;
      for (int other = 0; other < rank.world_size; ++other) parts.push_back(brought({rows, 3}, dtype, device, other));
      const at::Tensor expected = at::cat(parts);
      const at::Tensor input = brought({rows, 3}, dtype, device, rank.rank);
      at::Tensor output = at::full({rows * rank.world_size, 3}, 99, input.options());
      auto work = group->all_gather(output, input);
      work.wait();
      CHECK(same(output, expected));
      CHECK(same(input, brought({rows, 3}, dtype, device, rank.rank)));
    }
  }
}

template <Backend B>
void scatters_sums(Rank rank) {
  Group<B> group;
  const auto device = group->device();
  for (const auto dtype : dtypes) {
    for (const std::int64_t rows : {0, 1, 7, 20'001}) {
      for (const auto op : ops) {
        const std::vector<std::int64_t> whole = {rows * rank.world_size};
        const at::Tensor input = brought(whole, dtype, device, rank.rank);
        at::Tensor output = at::full({rows}, 99, input.options());
        auto work = group->reduce_scatter(output, input, op);
        work.wait();
        CHECK(same(output, reduced(whole, dtype, device, rank.world_size, op).narrow(0, rank.rank * rows, rows)));
        CHECK(same(input, brought(whole, dtype, device, rank.rank)));
      }
    }
  }
}

template <Backend B>
void passes_round_a_ring(Rank rank) {
  if (rank.world_size == 1) return;  // a rank is no peer of itself, see refuses()
  Group<B> group;
  const auto device = group->device();
  const int next = (rank.rank + 1) % rank.world_size;
  const int previous = (rank.rank + rank.world_size - 1) % rank.world_size;
  for (const auto dtype : movable) {
    for (const auto& shape : shapes()) {
      at::Tensor mine = brought(shape, dtype, device, rank.rank);
      at::Tensor theirs = at::full_like(mine, 99);
      auto sending = group->send(mine, next);
      auto receiving = group->recv(theirs, previous);
      receiving.wait();
      sending.wait();
      CHECK(same(theirs, brought(shape, dtype, device, previous)));
    }
  }
  at::Tensor first = at::full({5}, 10 * rank.rank, at::TensorOptions(device));
  at::Tensor second = first + 1;
  at::Tensor first_of_theirs = at::zeros_like(first);
  at::Tensor second_of_theirs = at::zeros_like(first);
  auto sending_first = group->send(first, next);
  auto sending_second = group->send(second, next);
  auto receiving_first = group->recv(first_of_theirs, previous);
  auto receiving_second = group->recv(second_of_theirs, previous);
  receiving_second.wait();
  receiving_first.wait();
  sending_first.wait();
  sending_second.wait();
  CHECK(same(first_of_theirs, at::full_like(first, 10 * previous)));
  CHECK(same(second_of_theirs, at::full_like(first, 10 * previous + 1)));
}

/// Everybody speaks before anybody listens; small, and more than engines keep for a peer that does not receive yet.
template <Backend B>
void passes_large_messages_round_a_ring(Rank rank) {
  if (rank.world_size == 1) return;  // a rank is no peer of itself, see refuses()
  Group<B> group;
  const auto device = group->device();
  const int next = (rank.rank + 1) % rank.world_size;
  const int previous = (rank.rank + rank.world_size - 1) % rank.world_size;
  for (const std::int64_t count : {5, 1 << 21}) {  // 8 MiB of floats
    for (const bool sender_first : {true, false}) {
      const at::Tensor mine = brought({count}, Float, device, rank.rank);
      at::Tensor theirs = at::full_like(mine, 99);
      auto sending = group->send(mine, next);
      auto receiving = group->recv(theirs, previous);
      sender_first ? sending.wait() : receiving.wait();
      sender_first ? receiving.wait() : sending.wait();
      CHECK(same(theirs, brought({count}, Float, device, previous)));
    }
    // What nobody waits for is under way all the same, once the next collective is called.
    const at::Tensor mine = brought({count}, Float, device, rank.rank);
    at::Tensor theirs = at::full_like(mine, 99);
    auto sending = group->send(mine, next);
    auto receiving = group->recv(theirs, previous);
    at::Tensor sum = brought({7}, Float, device, rank.rank);
    group->all_reduce(sum, ReduceOp::sum).wait();
    CHECK(same(sum, reduced({7}, Float, device, rank.world_size, ReduceOp::sum)));
    receiving.wait();
    sending.wait();
    CHECK(same(theirs, brought({count}, Float, device, previous)));
  }
}

/// Everybody's part for everybody else.
template <Backend B>
void exchanges_all_to_all(Rank rank) {
  Group<B> group;
  const auto device = group->device();
  const auto from_to = [&](int from, int to) { return brought({100'003}, Int, device, 10 * from + to); };
  std::vector<at::Tensor> received;
  std::vector<decltype(group->recv(received.front(), 0))> works;
  for (int other = 0; other < rank.world_size; ++other) received.push_back(at::full_like(from_to(0, 0), 99));
  for (int other = 0; other < rank.world_size; ++other) {
    if (other == rank.rank) continue;
    works.push_back(group->send(from_to(rank.rank, other), other));
    works.push_back(group->recv(received[static_cast<std::size_t>(other)], other));
  }
  for (auto& work : works) work.wait();
  for (int other = 0; other < rank.world_size; ++other)
    if (other != rank.rank) CHECK(same(received[static_cast<std::size_t>(other)], from_to(other, rank.rank)));
}

/// A message is between two ranks: that a third has left is no business of theirs.
template <Backend B>
void speaks_though_another_has_left(Rank rank) {
  if (rank.world_size < 3) return;
  auto others = meet().control_plane();  // what rank 0 serves must stay until all have ended
  const auto deadline = Deadline::in(Seconds(20));
  const int leaver = rank.world_size - 1;
  {
    Group<B> group;
    group->control().barrier("all are there", deadline);
    if (rank.rank < 2) {
      while (group->control().departure_of(leaver).empty() && !deadline.passed())
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      for (int round = 0; round < 3; ++round) {
        const at::Tensor mine = brought({1001}, Float, group->device(), 10 * round + rank.rank);
        at::Tensor theirs = at::full_like(mine, 99);
        auto sending = group->send(mine, 1 - rank.rank);
        auto receiving = group->recv(theirs, 1 - rank.rank);
        receiving.wait_until(deadline);
        sending.wait_until(deadline);
        CHECK(same(theirs, brought({1001}, Float, group->device(), 10 * round + 1 - rank.rank)));
      }
      // Each waits for the one that has left: neither hears it from the other.
      at::Tensor never = at::zeros({3}, at::TensorOptions(group->device()));
      const auto error = thrown_by<CommError>([&] { group->recv(never, leaver).wait_until(deadline); });
      CHECK_THAT(error, ContainsSubstring("rank " + std::to_string(leaver) + " (host ") &&
                            ContainsSubstring("has left the training"));
    }
  }
  others.barrier("the connections stay until all have waited", deadline);
  others.farewell();
}

template <Backend B>
void says_when_it_is_done(Rank rank) {
  Group<B> group;
  at::Tensor tensor = at::ones({3}, at::TensorOptions(group->device()));
  const bool last = rank.rank == rank.world_size - 1;
  const auto deadline = Deadline::in(Seconds(20));
  if (last) group->control().barrier("the others have looked", deadline);
  auto work = group->all_reduce(tensor, ReduceOp::sum);
  if (!last) {
    CHECK_FALSE(work.done());  // the last rank has not even begun
    group->control().barrier("the others have looked", deadline);
  }
  work.wait_until(deadline);
  CHECK(work.done());
  work.wait();  // once more does no harm
  CHECK(same(tensor, at::full_like(tensor, rank.world_size)));
}

template <Backend B>
void finishes_works_in_any_order(Rank rank) {
  Group<B> group;
  std::vector<at::Tensor> tensors;
  std::vector<decltype(group->all_reduce(tensors.front(), ReduceOp::sum))> works;
  for (int i = 0; i < 8; ++i)
    tensors.push_back(at::full({1 + 1000 * i}, i + rank.rank, at::TensorOptions(group->device())));
  for (auto& tensor : tensors) works.push_back(group->all_reduce(tensor, ReduceOp::sum));
  const int world_size = rank.world_size;
  while (!works.empty()) {
    works.back().wait();
    works.pop_back();
    const auto i = static_cast<int>(works.size());
    const auto& tensor = tensors[works.size()];
    CHECK(same(tensor, at::full_like(tensor, i * world_size + world_size * (world_size - 1) / 2)));
  }
}

template <Backend B>
void allocates_what_it_can_send(Rank rank) {
  Group<B> group;
  for (const std::int64_t count : {0, 4, 4004}) {
    at::Tensor buffer = group->allocate(Bytes{count});
    CHECK(buffer.scalar_type() == Byte);
    CHECK(buffer.sizes() == at::IntArrayRef{count});
    CHECK(buffer.device() == group->device());
    at::Tensor numbers = buffer.view(Float).fill_(rank.rank + 1);
    auto work = group->all_reduce(numbers, ReduceOp::max);
    work.wait();
    CHECK(same(numbers, at::full_like(numbers, rank.world_size)));
  }
}

template <Backend B>
void works_after_a_move(Rank rank) {
  Group<B> group;
  B moved(std::move(*group));
  at::Tensor tensor = at::ones({2}, at::TensorOptions(moved.device()));
  auto work = moved.all_reduce(tensor, ReduceOp::sum);
  work.wait();
  *group = std::move(moved);
  auto again = group->all_reduce(tensor, ReduceOp::sum);
  again.wait();
  CHECK(same(tensor, at::full_like(tensor, rank.world_size * rank.world_size)));
}

/// Sub-groups of 3: {2, 0}, in this order; {1} alone. Of 2: {1, 0}. Of 1: {0}.
template <Backend B>
void splits(Rank rank) {
  Group<B> group;
  const auto device = group->device();
  const auto deadline = Deadline::in(Seconds(20));
  std::vector<int> members = {0};
  if (rank.world_size > 1) members.insert(members.begin(), rank.world_size - 1);
  const auto found = std::find(members.begin(), members.end(), rank.rank);
  if (found == members.end()) {
    CHECK_THROWS_AS(group->split(members, "ends"), InvalidArgument);
  } else {
    const auto place = static_cast<int>(found - members.begin());
    B part = group->split(members, "ends");
    CHECK(part.rank() == place);
    CHECK(part.world_size() == static_cast<int>(members.size()));
    at::Tensor sum = brought({7}, Float, device, rank.rank);
    at::Tensor expected = at::zeros_like(sum);
    for (const int member : members) expected += brought({7}, Float, device, member);
    auto work = part.all_reduce(sum, ReduceOp::sum);
    work.wait();
    CHECK(same(sum, expected));
    at::Tensor from_first = brought({7}, Float, device, rank.rank);
    auto other_work = part.broadcast(from_first, 0);
    other_work.wait();
    CHECK(same(from_first, brought({7}, Float, device, members.front())));
    const auto words = part.control().all_gather("split", std::to_string(rank.rank), deadline);
    REQUIRE(words.size() == members.size());
    for (std::size_t i = 0; i < members.size(); ++i) CHECK(words[i] == std::to_string(members[i]));
  }
  const std::vector<int> alone = {rank.rank};
  B self = group->split(alone, "alone" + std::to_string(rank.rank));
  CHECK(self.world_size() == 1);
  at::Tensor own = brought({7}, Float, device, rank.rank);
  auto own_work = self.all_reduce(own, ReduceOp::sum);
  own_work.wait();
  CHECK(same(own, brought({7}, Float, device, rank.rank)));

  const std::vector<int> stranger = {0, rank.world_size};
  CHECK_THROWS_AS(group->split(stranger, "stranger"), InvalidArgument);
  at::Tensor whole = brought({7}, Float, device, rank.rank);  // the group itself goes on
  auto work = group->all_reduce(whole, ReduceOp::sum);
  work.wait();
  CHECK(same(whole, reduced({7}, Float, device, rank.world_size, ReduceOp::sum)));
}

template <Backend B>
void carries_texts(Rank rank) {
  Group<B> group;
  auto& control = group->control();
  const auto deadline = Deadline::in(Seconds(20));
  const auto word = [](int r, int round) {
    if (round == 0) return std::string();
    return std::string("line\n\0|end ", 11) + std::string(static_cast<std::size_t>(1000 * round * r), 'x');
  };
  for (int round = 0; round < 5; ++round) {
    const auto words = control.all_gather("test", word(rank.rank, round), deadline);
    REQUIRE(words.size() == static_cast<std::size_t>(rank.world_size));
    for (int other = 0; other < rank.world_size; ++other)
      CHECK(words[static_cast<std::size_t>(other)] == word(other, round));
  }
  for (int root = 0; root < rank.world_size; ++root)
    CHECK(control.broadcast("test", std::to_string(100 + rank.rank), root, deadline) == std::to_string(100 + root));
  // Nobody leaves a barrier before the last rank has come.
  const bool last = rank.rank == rank.world_size - 1;
  if (last) std::this_thread::sleep_for(std::chrono::milliseconds(200));
  const Stopwatch watch;
  control.barrier("test", deadline);
  if (rank.world_size > 1 && !last) CHECK(watch.seconds() > 0.05);
}

/// Mistakes are refused before anything is sent, so that the group goes on, whoever made them.
template <Backend B>
void refuses(Rank rank) {
  Group<B> group;
  const auto options = at::TensorOptions(group->device());
  const int world_size = rank.world_size;
  at::Tensor good = at::ones({3, 4}, options);
  at::Tensor whole = at::ones({3 * world_size, 4}, options);
  const auto check_everything = [&] {
    std::vector<at::Tensor> wrong = {at::Tensor(), good.t(), at::empty({3, 4}, options.device(c10::kMeta))};
    for (auto& bad : wrong) {
      INFO("given " << tensor::spec(bad));
      CHECK_THROWS_AS(group->all_reduce(bad, ReduceOp::sum), InvalidArgument);
      std::vector<at::Tensor> mixed = {good, bad};
      CHECK_THROWS_AS(group->all_reduce(std::span(mixed), ReduceOp::sum), InvalidArgument);
      CHECK_THROWS_AS(group->broadcast(bad, 0), InvalidArgument);
      CHECK_THROWS_AS(group->all_gather(bad, good), InvalidArgument);
      CHECK_THROWS_AS(group->all_gather(whole, bad), InvalidArgument);
      CHECK_THROWS_AS(group->reduce_scatter(bad, whole, ReduceOp::sum), InvalidArgument);
      CHECK_THROWS_AS(group->reduce_scatter(good, bad, ReduceOp::sum), InvalidArgument);
      CHECK_THROWS_AS(group->send(bad, (rank.rank + 1) % world_size), InvalidArgument);
      CHECK_THROWS_AS(group->recv(bad, (rank.rank + 1) % world_size), InvalidArgument);
    }
    CHECK_THROWS_WITH(group->all_reduce(wrong[1], ReduceOp::sum),
                      ContainsSubstring("all_reduce") && ContainsSubstring("f32[4, 3]"));
    CHECK_THROWS_WITH(group->broadcast(wrong[2], 0), ContainsSubstring(group->device().str()));

    at::Tensor longer = at::ones({12 * world_size + 1}, options);
    at::Tensor doubles = whole.to(Double);
    CHECK_THROWS_AS(group->all_gather(longer, good), InvalidArgument);
    CHECK_THROWS_AS(group->all_gather(doubles, good), InvalidArgument);
    CHECK_THROWS_AS(group->reduce_scatter(good, longer, ReduceOp::sum), InvalidArgument);
    CHECK_THROWS_AS(group->reduce_scatter(good, doubles, ReduceOp::sum), InvalidArgument);
    CHECK_THROWS_WITH(group->all_gather(longer, good),
                      ContainsSubstring("f32[3, 4]") && ContainsSubstring(tensor::spec(longer)));

    for (const int peer : {-1, world_size}) {
      CHECK_THROWS_AS(group->broadcast(good, peer), InvalidArgument);
      CHECK_THROWS_AS(group->send(good, peer), InvalidArgument);
      CHECK_THROWS_AS(group->recv(good, peer), InvalidArgument);
      CHECK_THROWS_WITH(group->broadcast(good, peer), ContainsSubstring(std::to_string(peer)));
    }
    CHECK_THROWS_AS(group->send(good, rank.rank), InvalidArgument);
    CHECK_THROWS_AS(group->recv(good, rank.rank), InvalidArgument);
  };
  const auto still_works = [&] {
    at::Tensor sum = brought({7}, Float, group->device(), rank.rank);
    auto work = group->all_reduce(sum, ReduceOp::sum);
    work.wait();
    CHECK(same(sum, reduced({7}, Float, group->device(), world_size, ReduceOp::sum)));
  };
  check_everything();
  still_works();
  if (rank.rank == world_size - 1) check_everything();  // on one rank only
  still_works();
  CHECK(same(good, at::ones({3, 4}, options)));
}

/// A peer that does not come costs as much time as the deadline says, and the group.
template <Backend B>
void gives_up_at_the_deadline(Rank rank) {
  Group<B> group;
  auto others = meet().control_plane();  // one of its own: that of the group is given up with it
  at::Tensor tensor = at::ones({3}, at::TensorOptions(group->device()));
  if (rank.rank != rank.world_size - 1) {
    auto work = group->all_reduce(tensor, ReduceOp::sum);
    const Stopwatch watch;
    const auto error = thrown_by<CommError>([&] { work.wait_until(Deadline::in(Seconds(0.4))); });
    CHECK(watch.seconds() >= 0.35);
    CHECK(watch.seconds() <= 1.4 * patience);
    CHECK_THAT(error, ContainsSubstring("all_reduce number 1 of 12 B") && ContainsSubstring("0.4 s"));
    const auto next = thrown_by<CommError>([&] { (void)group->all_reduce(tensor, ReduceOp::sum); });
    CHECK_THAT(next, ContainsSubstring("given up") && ContainsSubstring("all_reduce number 1"));
    const Deadline later = Deadline::in(Seconds(20));
    CHECK_THAT(thrown_by<CommError>([&] { group->control().barrier("barrier", later); }),
               ContainsSubstring("given up"));
  }
  others.barrier("the connections stay until all have waited", Deadline::in(Seconds(20)));
}

/// The same for a backend whose calls wait themselves: its own timeout is what ends them.
template <Backend B>
void gives_up_at_its_timeout(Rank rank) {
  typename B::Options options = Group<B>::patient();
  options.timeout_s = 0.4;
  Group<B> group(options);
  auto others = meet().control_plane();
  at::Tensor tensor = at::ones({3}, at::TensorOptions(group->device()));
  if (rank.rank != rank.world_size - 1) {
    const Stopwatch watch;
    const auto error = thrown_by<CommError>([&] { (void)group->all_reduce(tensor, ReduceOp::sum); });
    CHECK(watch.seconds() >= 0.35);
    CHECK(watch.seconds() <= 1.4 * patience);
    CHECK_THAT(error, ContainsSubstring("all_reduce number 1 of 12 B") && ContainsSubstring("0.4 s"));
    CHECK_THAT(thrown_by<CommError>([&] { (void)group->all_reduce(tensor, ReduceOp::sum); }),
               ContainsSubstring("given up") && ContainsSubstring("all_reduce number 1"));
  }
  others.barrier("the connections stay until all have waited", Deadline::in(Seconds(20)));
}

template <Backend B>
void ends_with_an_abort(Rank rank) {
  Group<B> group;
  at::Tensor tensor = at::ones({3}, at::TensorOptions(group->device()));
  at::Tensor whole = at::ones({3 * rank.world_size}, at::TensorOptions(group->device()));
  group->abort("the disk is full");
  group->abort("a later reason");  // the first is what explains the rest
  const auto says_so = ContainsSubstring("the disk is full");
  const auto gone = [&](auto&& call) { CHECK_THAT(thrown_by<CommError>(call), says_so); };
  const int peer = (rank.rank + 1) % rank.world_size;
  std::vector<at::Tensor> tensors = {tensor};
  gone([&] { (void)group->all_reduce(tensor, ReduceOp::sum); });
  gone([&] { (void)group->all_reduce(std::span(tensors), ReduceOp::sum); });
  gone([&] { (void)group->broadcast(tensor, 0); });
  gone([&] { (void)group->all_gather(whole, tensor); });
  gone([&] { (void)group->reduce_scatter(tensor, whole, ReduceOp::sum); });
  gone([&] { (void)group->send(tensor, peer); });
  gone([&] { (void)group->recv(tensor, peer); });
  const std::vector<int> self = {rank.rank};
  gone([&] { (void)group->split(self, "self"); });
}

template <Backend B>
void ends_without_a_reason(Rank) {
  Group<B> group;
  at::Tensor tensor = at::ones({3}, at::TensorOptions(group->device()));
  group->abort("");
  CHECK_THROWS_AS(group->all_reduce(tensor, ReduceOp::sum), CommError);
}

/// Several laws in one start of the ranks, which costs more than they do.
inline std::function<void(Rank)> one_after_the_other(std::vector<void (*)(Rank)> laws) {
  return [laws = std::move(laws)](Rank rank) {
    for (const auto law : laws) law(rank);
  };
}

}  // namespace accel::testing::backend_suite

#define ACCEL_BACKEND_SUITE(B, ...)                                                                                   \
  ACCEL_BACKEND_LAWS(B, __VA_ARGS__)                                                                                  \
  TEST_CASE(#B " has works that say when they are done, and give up at a deadline", "[backend][conformance]") {       \
    using namespace accel::testing::backend_suite;                                                                    \
    accel::testing::on_ranks(                                                                                         \
        __VA_ARGS__,                                                                                                  \
        one_after_the_other({says_when_it_is_done<B>, finishes_works_in_any_order<B>, gives_up_at_the_deadline<B>})); \
  }

#define ACCEL_BLOCKING_BACKEND_SUITE(B, ...)                                                          \
  ACCEL_BACKEND_LAWS(B, __VA_ARGS__)                                                                  \
  TEST_CASE(#B " has calls that give up at its timeout", "[backend][conformance]") {                  \
    accel::testing::on_ranks(__VA_ARGS__, accel::testing::backend_suite::gives_up_at_its_timeout<B>); \
  }

#define ACCEL_BACKEND_LAWS(B, ...)                                                                                   \
  TEST_CASE(#B " reduces every dtype, alone and in groups", "[backend][conformance]") {                              \
    using namespace accel::testing::backend_suite;                                                                   \
    accel::testing::on_ranks(__VA_ARGS__, one_after_the_other({knows_who_it_is<B>, reduces<B>, reduces_groups<B>})); \
  }                                                                                                                  \
  TEST_CASE(#B " broadcasts, gathers, scatters, sends and receives", "[backend][conformance]") {                     \
    using namespace accel::testing::backend_suite;                                                                   \
    accel::testing::on_ranks(__VA_ARGS__,                                                                            \
                             one_after_the_other({broadcasts_from_every_rank<B>, gathers<B>, scatters_sums<B>,       \
                                                  passes_round_a_ring<B>, passes_large_messages_round_a_ring<B>,     \
                                                  exchanges_all_to_all<B>, speaks_though_another_has_left<B>}));     \
  }                                                                                                                  \
  TEST_CASE(#B " splits into groups, allocates, moves, and carries texts", "[backend][conformance]") {               \
    using namespace accel::testing::backend_suite;                                                                   \
    accel::testing::on_ranks(__VA_ARGS__, one_after_the_other({splits<B>, allocates_what_it_can_send<B>,             \
                                                               works_after_a_move<B>, carries_texts<B>}));           \
  }                                                                                                                  \
  TEST_CASE(#B " refuses mistakes before anything is sent, and goes on", "[backend][conformance]") {                 \
    accel::testing::on_ranks(__VA_ARGS__, accel::testing::backend_suite::refuses<B>);                                \
  }                                                                                                                  \
  TEST_CASE(#B " gives up when told, and says so ever after", "[backend][conformance]") {                            \
    using namespace accel::testing::backend_suite;                                                                   \
    accel::testing::on_ranks(__VA_ARGS__, one_after_the_other({ends_with_an_abort<B>, ends_without_a_reason<B>}));   \
  }
