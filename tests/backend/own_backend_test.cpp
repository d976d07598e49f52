// The backend of examples/by_feature is held to the laws of all backends.
#define ACCEL_EXAMPLE_AS_HEADER
#include "../../examples/by_feature/own_backend.cpp"

#include "conformance/backend_suite.hpp"

ACCEL_BLOCKING_BACKEND_SUITE(Postal, {1, 2, 3})
