#include <catch2/catch_test_macros.hpp>

#include <accel/launch/topology.hpp>

using accel::launch::Topology;

TEST_CASE("a topology knows who is main, local main and last", "[launch]") {
  const Topology topology{.rank = 2, .world_size = 4, .local_rank = 0, .local_world_size = 2, .node_rank = 1};
  CHECK_FALSE(topology.is_main());
  CHECK(topology.is_local_main());
  CHECK_FALSE(topology.is_last());
  CHECK(Topology{.rank = 3, .world_size = 4}.is_last());
  CHECK(Topology{}.is_main());
  CHECK(Topology{}.is_last());
}

TEST_CASE("a label names rank and world size, and is empty where there is one rank", "[launch]") {
  CHECK(Topology{.rank = 1, .world_size = 4}.label() == "[rank 1/4]");
  CHECK(Topology{}.label().empty());
}
