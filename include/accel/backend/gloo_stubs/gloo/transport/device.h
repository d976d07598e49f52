// Stand-in for gloo's header of this name, which LibTorch does not ship.
#pragma once

namespace gloo::transport {

class Device;         // held behind a shared pointer, made by ProcessGroupGloo's factories
class UnboundBuffer;  // named by ProcessGroupGloo's point-to-point works, never touched by us

}  // namespace gloo::transport
