// Linked beside the tests, like odr.cpp: a missing inline breaks the program. And what clang-tidy reads.
#include <accel/accelerator.hpp>
#include <accel/backend/nccl.hpp>
