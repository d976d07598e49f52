# The floors of accel, once, and the check that nothing includes upwards or sideways.
#
#   cmake -DINCLUDE_DIR=include -P cmake/AccelLayers.cmake
#
# A header may include lower floors and its own folder. Folders on the same floor never include
# each other (the single files of a high floor may). Some heavy headers of LibTorch have their one
# place, and some have none.

cmake_minimum_required(VERSION 3.25)

set(floor_0 core)
set(floor_1 launch)
set(floor_2 tensor)
set(floor_3 backend contract precision data)
set(floor_4 collective gradient dataset)
set(floor_5 sharding optim metrics track checkpoint)
set(floor_6 prepare)
set(floor_7 accelerator.hpp fwd.hpp)
set(floor_8 config)
set(floor_9 trainer.hpp dispatch.hpp)
set(highest_floor 9)

# <header> [the only files of ours that may include it]
set(restricted_headers
  "torch/torch.h"
  "torch/nn/module.h"
  "torch/csrc/distributed/c10d/ProcessGroupGloo.hpp backend/gloo.hpp"
  "ATen/autocast_mode.h precision/autocast.hpp"
  "nccl.h backend/nccl.hpp"
  "cuda_runtime_api.h backend/nccl.hpp"
  "c10/cuda/CUDAFunctions.h backend/nccl.hpp"
  "c10/cuda/CUDAGuard.h backend/nccl.hpp"
  "c10/cuda/CUDAStream.h backend/nccl.hpp")

# What floor 0 and floor 1 may include of libraries: nothing, and the store by which ranks meet.
set(library_headers "^(ATen|torch|c10|caffe2|gloo|nlohmann|nccl|cuda)")
set(libraries_of_floor_0 "nothing")
set(libraries_of_floor_1 "torch/csrc/distributed/c10d/(Store|PrefixStore|TCPStore)\\.hpp|c10/util/intrusive_ptr\\.h")

# The topmost part of a path below include/accel: a folder, or a file that is a floor's own entry.
function(entry_of path result)
  string(REGEX REPLACE "/.*" "" entry "${path}")
  set(${result} "${entry}" PARENT_SCOPE)
endfunction()

function(floor_of path result)
  entry_of("${path}" entry)
  foreach(floor RANGE ${highest_floor})
    if(entry IN_LIST floor_${floor})
      set(${result} ${floor} PARENT_SCOPE)
      return()
    endif()
  endforeach()
  set(${result} none PARENT_SCOPE)
endfunction()

# May `path` include `included`, both below include/accel? Leaves a sentence in `result` if not.
function(check_floors path included result)
  floor_of("${path}" from)
  floor_of("${included}" to)
  entry_of("${path}" own)
  entry_of("${included}" other)
  set(${result} "" PARENT_SCOPE)
  if(to STREQUAL none)
    set(${result} "${path} includes ${included}, which stands on no floor" PARENT_SCOPE)
  elseif(to GREATER from OR (to EQUAL from AND NOT own STREQUAL other AND from LESS 7))
    set(${result} "${path} (floor ${from}) includes ${included} (floor ${to})" PARENT_SCOPE)
  elseif(included MATCHES "/detail/" AND NOT own STREQUAL other)
    set(${result} "${path} includes ${included}, a detail of ${other}/" PARENT_SCOPE)
  elseif(NOT EXISTS "${INCLUDE_DIR}/accel/${included}" AND NOT included STREQUAL "ext/config.hpp")
    set(${result} "${path} includes ${included}, which does not exist" PARENT_SCOPE)
  endif()
endfunction()

function(check_restricted path included result)
  set(${result} "" PARENT_SCOPE)
  floor_of("${path}" floor)
  if(floor LESS 2 AND included MATCHES "${library_headers}"
      AND NOT included MATCHES "^(${libraries_of_floor_${floor}})$")
    set(${result} "${path} includes <${included}>, but floor ${floor} stands below LibTorch" PARENT_SCOPE)
    return()
  endif()
  foreach(rule IN LISTS restricted_headers)
    separate_arguments(allowed UNIX_COMMAND "${rule}")
    list(POP_FRONT allowed header)
    if(included STREQUAL header AND NOT path IN_LIST allowed)
      set(only "")
      if(allowed)
        set(only ", which belongs in ${allowed} alone")
      endif()
      set(${result} "${path} includes <${header}>${only}" PARENT_SCOPE)
    endif()
  endforeach()
endfunction()

string(REPEAT "[^\n]" 121 too_long)  # of a line's characters: CMake's expressions cannot count

file(REAL_PATH "${INCLUDE_DIR}" INCLUDE_DIR)
file(GLOB_RECURSE headers RELATIVE "${INCLUDE_DIR}/accel" "${INCLUDE_DIR}/accel/*.hpp")
list(FILTER headers EXCLUDE REGEX "/gloo_stubs/|^ext/")
set(problems "")
set(all_lines 0)
set(sizes "")
foreach(header IN LISTS headers)
  floor_of("${header}" floor)
  if(floor STREQUAL none)
    list(APPEND problems "${header} stands on no floor")
  endif()
  file(STRINGS "${INCLUDE_DIR}/accel/${header}" includes REGEX "^[ \t]*#[ \t]*include")
  foreach(line IN LISTS includes)
    if(line MATCHES "include[ \t]*\"")
      list(APPEND problems "${header} has an include in quotes; write <accel/...>")
    elseif(line MATCHES "<accel/([^>]+)>")
      check_floors("${header}" "${CMAKE_MATCH_1}" problem)
      list(APPEND problems ${problem})
    elseif(line MATCHES "<([^>]+)>")
      check_restricted("${header}" "${CMAKE_MATCH_1}" problem)
      list(APPEND problems ${problem})
    endif()
  endforeach()
  file(READ "${INCLUDE_DIR}/accel/${header}" text)
  if(text MATCHES "${too_long}")
    string(REPLACE ";" "," line "${CMAKE_MATCH_0}")
    list(APPEND problems "${header} has a line of more than 120 characters: ${line}...")
  endif()
  string(REGEX MATCHALL "\n" newlines "${text}")
  list(LENGTH newlines lines)
  math(EXPR all_lines "${all_lines} + ${lines}")
  string(LENGTH "${lines}" digits)
  string(SUBSTRING "     ${lines}" ${digits} 5 lines)
  list(APPEND sizes "${lines}  ${header}")
endforeach()

list(LENGTH headers header_count)
if(header_count EQUAL 0)
  message(FATAL_ERROR "there is no header in ${INCLUDE_DIR}/accel")
endif()
list(SORT sizes ORDER DESCENDING)
list(JOIN sizes "\n" sizes)
message(STATUS "lines per header, ${header_count} headers, ${all_lines} lines:\n${sizes}")

if(problems)
  list(JOIN problems "\n  " problems)
  message(FATAL_ERROR "The floors are broken:\n  ${problems}\n")
endif()
message(STATUS "the floors hold")
