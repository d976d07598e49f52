// Stand-in for gloo's header of this name, which LibTorch does not ship. Nothing in it is needed.
#pragma once
