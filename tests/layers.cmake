# Breaks the floors in every way there is, in a tree of its own, and expects each to be found.

cmake_minimum_required(VERSION 3.25)

set(checker "${CMAKE_CURRENT_LIST_DIR}/../cmake/AccelLayers.cmake")

# expect(<what the checker says, or "the floors hold"> <file> <text> [<file> <text>]...)
function(expect sentence)
  file(REMOVE_RECURSE "${WORK_DIR}")
  while(ARGN)
    list(POP_FRONT ARGN file text)
    file(WRITE "${WORK_DIR}/include/accel/${file}" "#pragma once\n${text}\n")
  endwhile()
  execute_process(COMMAND "${CMAKE_COMMAND}" "-DINCLUDE_DIR=${WORK_DIR}/include" -P "${checker}"
    OUTPUT_VARIABLE output ERROR_VARIABLE output RESULT_VARIABLE failed)
  string(FIND "${output}" "${sentence}" found)
  if(found EQUAL -1)
    message(FATAL_ERROR "expected \"${sentence}\", got:\n${output}")
  endif()
  if(sentence STREQUAL "the floors hold" AND failed)
    message(FATAL_ERROR "a good tree fails:\n${output}")
  endif()
  if(NOT sentence STREQUAL "the floors hold" AND NOT failed)
    message(FATAL_ERROR "a bad tree passes:\n${output}")
  endif()
  message(STATUS "found: ${sentence}")
endfunction()

expect("the floors hold"
  core/error.hpp "#include <string>"
  gradient/bucket.hpp "#include <accel/core/error.hpp>"
  gradient/clip.hpp "#include <accel/gradient/bucket.hpp>")
expect("gradient/clip.hpp (floor 4) includes sharding/zero1.hpp (floor 5)"
  gradient/clip.hpp "#include <accel/sharding/zero1.hpp>"
  sharding/zero1.hpp "")
expect("precision/fp16.hpp (floor 3) includes data/sampler.hpp (floor 3)"
  precision/fp16.hpp "  #  include <accel/data/sampler.hpp>  // why not"
  data/sampler.hpp "")
expect("prepare/model.hpp (floor 6) includes accelerator.hpp (floor 7)"
  prepare/model.hpp "#include <accel/accelerator.hpp>"
  accelerator.hpp "")
expect("utils/misc.hpp stands on no floor"
  utils/misc.hpp "")
expect("core/error.hpp includes core/gone.hpp, which does not exist"
  core/error.hpp "#include <accel/core/gone.hpp>")
expect("prepare/model.hpp includes tensor/detail/file.hpp, a detail of tensor/"
  prepare/model.hpp "#include <accel/tensor/detail/file.hpp>"
  tensor/detail/file.hpp "")
expect("core/error.hpp has an include in quotes"
  core/error.hpp "#include \"log.hpp\"")
expect("prepare/model.hpp includes <torch/torch.h>"
  prepare/model.hpp "#include <torch/torch.h>")
expect("prepare/model.hpp includes <torch/nn/module.h>"
  prepare/model.hpp "#include <torch/nn/module.h>")
expect("core/units.hpp includes <ATen/core/Tensor.h>, but floor 0 stands below LibTorch"
  core/units.hpp "#include <ATen/core/Tensor.h>")
expect("core/units.hpp includes <torch/csrc/distributed/c10d/Store.hpp>, but floor 0 stands below LibTorch"
  core/units.hpp "#include <torch/csrc/distributed/c10d/Store.hpp>")
expect("launch/threads.hpp includes <ATen/Parallel.h>, but floor 1 stands below LibTorch"
  launch/threads.hpp "#include <ATen/Parallel.h>")
expect("the floors hold"
  launch/rendezvous.hpp "#include <torch/csrc/distributed/c10d/TCPStore.hpp>")
string(REPEAT "x" 118 long_comment)
expect("core/units.hpp has a line of more than 120 characters"
  core/units.hpp "// ${long_comment}")
string(REPEAT "x" 117 long_comment)
expect("the floors hold"
  core/units.hpp "// ${long_comment}")
expect("ProcessGroupGloo.hpp>, which belongs in backend/gloo.hpp alone"
  backend/single.hpp "#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>")
