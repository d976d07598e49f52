// RandomPart: the generators that LibTorch draws from on this rank.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>

#include <ATen/Context.h>
#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <accel/checkpoint/part.hpp>
#include <accel/core/crc32c.hpp>
#include <accel/core/error.hpp>
#include <accel/core/hash.hpp>
#include <accel/tensor/spec.hpp>
#include <accel/tensor/state_dict.hpp>

namespace accel::inline v0_1::checkpoint {

/// The default generators of the CPU and, where it is another one, of `device`.
///
/// State    as torch.get_rng_state() gives it: u8[bytes].
[[nodiscard]] inline Part random_part(c10::Device device, int rank) {
  const auto generator = [](c10::Device of) { return at::globalContext().defaultGenerator(of); };
  const c10::Device cpu(c10::DeviceType::CPU);
  const auto for_each = [generator, cpu, device](const auto& visit) {
    visit("cpu", generator(cpu));
    if (!device.is_cpu()) visit("device", generator(device));
  };
  Part part;
  part.sharing = Sharing::own;  // of one rank it is not known whether another would draw the same
  part.state = [for_each] {
    tensor::StateDict state;
    for_each([&](const char* name, at::Generator own) {
      const std::lock_guard lock(own.mutex());
      state.add(name, own.get_state());
    });
    return state;
  };
  part.mismatch = [for_each](const SavedPart& saved) {
    std::string text;
    for_each([&](const char* name, at::Generator own) {
      if (!saved.own().has(name)) return;
      const std::lock_guard lock(own.mutex());
      const at::Tensor now = own.get_state();
      if (saved.own().tensor(name).sizes() != now.sizes())
        text = message("the state of the generator of ", name, " is ", tensor::spec(saved.own().tensor(name)),
                       " there and ", tensor::spec(now), " here; it is of another version of LibTorch");
    });
    return text;
  };
  part.load = [for_each, device, rank](const SavedPart& saved) -> std::string {
    std::string note;
    for_each([&](const char* name, at::Generator own) {
      if (!saved.own().has(name)) {
        note = message("the generator of this device is not in it, and goes on as it is here");
        return;
      }
      const at::Tensor& state = saved.own().tensor(name);
      const std::lock_guard lock(own.mutex());
      if (saved.is_own()) return own.set_state(state);
      const std::uint32_t of_rank_0 = crc32c({static_cast<const std::byte*>(state.const_data_ptr()), state.nbytes()});
      own.set_current_seed(mixed(of_rank_0, static_cast<std::uint64_t>(rank)));
    });
    if (saved.own().has("device") && device.is_cpu()) note = "the generator of another device is left out";
    if (saved.is_own()) return note;
    return message("rank ", rank, " draws new random numbers, as it was not there");
  };
  return part;
}

}  // namespace accel::inline v0_1::checkpoint
