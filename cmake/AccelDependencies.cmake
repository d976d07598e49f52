# The libraries besides LibTorch: the machine's if it has them, else fetched from their sources.
#
# Included before our warnings are switched on, so that fetched sources compile without them.

include(FetchContent)

find_package(nlohmann_json 3.10 QUIET GLOBAL)
if(NOT nlohmann_json_FOUND)
  message(STATUS "nlohmann_json is not installed: fetching 3.11.3")
  set(JSON_Install ${ACCEL_INSTALL})  # it is part of what accel's package needs
  FetchContent_Declare(nlohmann_json
    GIT_REPOSITORY https://github.com/nlohmann/json.git
    GIT_TAG 9cca280a4d0ccf0c08f47a99aa71d1b0e52f8d03  # v3.11.3
    SYSTEM)
  FetchContent_MakeAvailable(nlohmann_json)
endif()

if(ACCEL_BUILD_TESTS)
  find_package(Catch2 3 QUIET)
  if(NOT Catch2_FOUND)
    message(STATUS "Catch2 3 is not installed: fetching 3.7.1")
    FetchContent_Declare(Catch2
      GIT_REPOSITORY https://github.com/catchorg/Catch2.git
      GIT_TAG fa43b77429ba76c462b1898d6cd2f2d7a9416b14  # v3.7.1
      SYSTEM)
    FetchContent_MakeAvailable(Catch2)
  endif()
endif()
