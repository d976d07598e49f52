// Checked: what ranks call differently is named on every rank, and what they call alike is undisturbed.
#include <torch/torch.h>

#include <functional>
#include <iostream>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <accel/accelerator.hpp>

#include "conformance/backend_suite.hpp"
#include "support/group.hpp"
#include "support/ranks.hpp"
#include "support/training.hpp"

using accel::CommError;
using accel::ReduceOp;
using accel::backend::Checked;
using accel::backend::Gloo;
using accel::backend::Single;
using accel::backend::Traced;
using accel::testing::Group;
using accel::testing::meet;
using accel::testing::on_ranks;
using accel::testing::patience;
using accel::testing::Rank;
using accel::testing::Stopwatch;
using accel::testing::thrown_by;
using accel::testing::trained;
using Catch::Matchers::ContainsSubstring;

ACCEL_BACKEND_SUITE(accel::backend::Checked<accel::backend::Gloo>, {1, 2, 3})

static_assert(accel::Backend<Checked<Single>>);
static_assert(accel::Backend<Checked<Traced<Gloo>>>);

namespace {

/// A collective and how it is told.
struct Call {
  std::string text;
  std::function<void(Checked<Gloo>&)> run;
};

Call all_reduce(std::vector<std::int64_t> shape, at::ScalarType dtype = at::kFloat, ReduceOp op = ReduceOp::sum) {
  const auto tensor = at::ones(shape, dtype);
  return {accel::message("all_reduce ", op == ReduceOp::sum ? "sum" : "max", " of ", accel::tensor::spec(tensor)),
          [tensor, op](Checked<Gloo>& group) {
            at::Tensor copy = tensor.clone();
            auto work = group.all_reduce(copy, op);
            work.wait();
          }};
}

Call grouped(std::size_t count) {
  const auto tensor = at::ones({3});
  std::string text = "all_reduce sum of";
  for (std::size_t i = 0; i < count; ++i) text += std::string(i == 0 ? " " : ", ") + accel::tensor::spec(tensor);
  return {text, [tensor, count](Checked<Gloo>& group) {
            std::vector<at::Tensor> tensors;
            for (std::size_t i = 0; i < count; ++i) tensors.push_back(tensor.clone());
            auto work = group.all_reduce(std::span(tensors), ReduceOp::sum);
            work.wait();
          }};
}

Call broadcast(int root) {
  return {accel::message("broadcast from ", root, " of f32[8]"), [root](Checked<Gloo>& group) {
            at::Tensor tensor = at::ones({8});
            auto work = group.broadcast(tensor, root);
            work.wait();
          }};
}

Call all_gather(std::int64_t rows) {
  return {accel::message("all_gather of f32[", rows, "]"), [rows](Checked<Gloo>& group) {
            at::Tensor input = at::ones({rows});
            at::Tensor output = at::empty({rows * group.world_size()});
            auto work = group.all_gather(output, input);
            work.wait();
          }};
}

}  // namespace

TEST_CASE("ranks that call different collectives are all told who calls what", "[backend]") {
  const bool shared_memory = GENERATE(true, false);
  on_ranks({2, 3}, [shared_memory](Rank rank) {
    const std::vector<std::pair<Call, Call>> differences = {
        {all_reduce({8}), broadcast(0)},
        {all_reduce({8}), all_reduce({4})},
        {all_reduce({2, 4}), all_reduce({8})},
        {all_reduce({8}), all_reduce({8}, at::kDouble)},
        {all_reduce({8}), all_reduce({8}, at::kFloat, ReduceOp::max)},
        {broadcast(0), broadcast(1)},
        {grouped(2), grouped(3)},
        {all_gather(3), all_gather(4)},
        {all_gather(3), all_reduce({3})},
        {broadcast(0), all_reduce({8})},
        {all_reduce({0}), all_reduce({8})},
        {all_gather(0), all_gather(3)},
    };
    for (const auto& [common, odd] : differences) {
      auto options = Group<Checked<Gloo>>::patient();
      options.shared_memory = shared_memory;
      Group<Checked<Gloo>> group(options);
      all_reduce({5}).run(*group);  // as long as all call the same, nothing is said
      const int other = rank.world_size - 1;
      const Stopwatch watch;
      const auto error = thrown_by<CommError>([&] { (rank.rank == other ? odd : common).run(*group); });
      CHECK(watch.seconds() < 2 * patience);
      CHECK_THAT(error, ContainsSubstring("number 2: the ranks do not call the same") &&
                            ContainsSubstring("rank 0 calls " + common.text) &&
                            ContainsSubstring(accel::message("rank ", other, " calls ", odd.text)));
      if (rank.rank == 0) std::cout << error << "\n";
      CHECK_THAT(thrown_by<CommError>([&] { all_reduce({5}).run(*group); }), ContainsSubstring("given up"));
    }
  });
}

TEST_CASE("a training with Checked, and with Traced, is that without, bit for bit", "[backend]") {
  on_ranks({1, 2, 3}, [](Rank) {
    const auto plain = trained<Gloo>();
    CHECK(trained<Checked<Gloo>>() == plain);
    CHECK(trained<Traced<Gloo>>() == plain);
    CHECK(trained<Checked<Traced<Gloo>>>() == plain);
  });
}

TEST_CASE("a rank that has left is named by those whose calls are compared, however they are", "[backend]") {
  const bool shared_memory = GENERATE(true, false);
  on_ranks({3}, [shared_memory](Rank rank) {
    const auto others = meet();  // of its own: rank 0's star must outlive the group
    const int leaver = 1;
    {
      auto options = Group<Checked<Gloo>>::patient();
      options.shared_memory = shared_memory;
      Group<Checked<Gloo>> group(options);
      all_reduce({5}).run(*group);
      group->control().barrier("all are here", accel::Deadline::in(accel::Seconds(20)));
      if (rank.rank != leaver) {
        const Stopwatch watch;
        const auto error = thrown_by<CommError>([&] { all_reduce({5}).run(*group); });
        CHECK(watch.seconds() < 4 * patience);
        CHECK_THAT(error, ContainsSubstring("rank 1 (host ") && ContainsSubstring("has left the training"));
        std::cout << error << "\n";
      }
    }
    auto control = others.control_plane();
    control.barrier("end", accel::Deadline::in(accel::Seconds(20)));
    control.farewell();
  });
}
