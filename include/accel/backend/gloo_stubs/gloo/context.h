// Stand-in for gloo's header of this name, which LibTorch does not ship.
#pragma once

#include <chrono>

namespace gloo {

// Never created or measured by our code: LibTorch's ProcessGroupGloo holds it behind shared
// pointers and its one inline use is this call, which libtorch_cpu defines.
class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

}  // namespace gloo
