# Finds LibTorch and describes it as LibTorch::LibTorch (with LibTorch::torch_cpu, LibTorch::c10).
#
# LibTorch's own package file is not used: it demands nvcc, runs a test program and rewrites the
# CUDA flags of the whole project, even for a program that never touches a GPU.
#
# Looked at, in this order:
#   LibTorch_ROOT, LIBTORCH    CMake or environment variable: a folder that holds include/ and lib/
#   CMAKE_PREFIX_PATH          such a folder in it, as LibTorch's own documentation asks
#   Python                     the `torch` of the active virtual environment, then of python3
#
# Sets LibTorch_FOUND, LibTorch_VERSION, LibTorch_PREFIX, and LibTorch_PYTHON if Python named it.

set(_libtorch_tested 2.15)  # the newest that the tests have run with
set(_libtorch_header include/torch/csrc/api/include/torch/torch.h)
set(_libtorch_looked_for "${_libtorch_header} and lib/libtorch_cpu.so")

function(_libtorch_is_prefix folder result)
  set(${result} FALSE PARENT_SCOPE)
  if(EXISTS "${folder}/${_libtorch_header}" AND EXISTS "${folder}/lib/libtorch_cpu.so")
    set(${result} TRUE PARENT_SCOPE)
  endif()
endfunction()

# Asks an interpreter where its torch is, without importing it: a copy without its CUDA packages
# cannot be imported but is good enough here.
function(_libtorch_of_python interpreter result)
  set(${result} "" PARENT_SCOPE)
  execute_process(
    COMMAND "${interpreter}" -c [[
import importlib.util, sys
sys.path[:] = [folder for folder in sys.path if folder]
spec = importlib.util.find_spec("torch")
print(spec.submodule_search_locations[0] if spec and spec.origin else "")]]
    OUTPUT_VARIABLE folder OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  if(NOT failed)
    set(${result} "${folder}" PARENT_SCOPE)
  endif()
endfunction()

# Finds the prefix. A place that was named but holds no LibTorch is an error, nothing to pass over.
function(_libtorch_find_prefix)
  set(looked "")
  foreach(place "LibTorch_ROOT" "LIBTORCH")
    foreach(folder "${${place}}" "$ENV{${place}}")
      if(folder STREQUAL "")
        continue()
      endif()
      file(REAL_PATH "${folder}" folder BASE_DIRECTORY "${CMAKE_SOURCE_DIR}" EXPAND_TILDE)
      _libtorch_is_prefix("${folder}" found)
      if(found)
        set(LibTorch_PREFIX "${folder}" CACHE PATH "Where LibTorch is installed" FORCE)
        return()
      endif()
      set(_libtorch_problem "${place} is ${folder}, but there is no LibTorch in it.
Looked there for ${_libtorch_looked_for}.
Set ${place} to the folder that holds LibTorch's include/ and lib/." PARENT_SCOPE)
      unset(LibTorch_PREFIX CACHE)
      return()
    endforeach()
  endforeach()

  foreach(folder IN LISTS CMAKE_PREFIX_PATH)
    _libtorch_is_prefix("${folder}" found)
    if(found)
      set(LibTorch_PREFIX "${folder}" CACHE PATH "Where LibTorch is installed" FORCE)
      return()
    endif()
  endforeach()
  _libtorch_is_prefix("${LibTorch_PREFIX}" found)  # found by an earlier run
  if(found)
    return()
  endif()
  unset(LibTorch_PREFIX CACHE)
  set(interpreters "")
  if(NOT "$ENV{VIRTUAL_ENV}" STREQUAL "")
    list(APPEND interpreters "$ENV{VIRTUAL_ENV}/bin/python3")
  endif()
  find_program(interpreter NAMES python3 python NO_CACHE)
  if(interpreter)
    list(APPEND interpreters "${interpreter}")
  endif()
  list(REMOVE_DUPLICATES interpreters)
  foreach(interpreter IN LISTS interpreters)
    _libtorch_of_python("${interpreter}" folder)
    _libtorch_is_prefix("${folder}" found)
    if(found)
      set(LibTorch_PREFIX "${folder}" CACHE PATH "Where LibTorch is installed" FORCE)
      set(LibTorch_PYTHON "${interpreter}" CACHE FILEPATH "The Python that has this LibTorch" FORCE)
      return()
    endif()
    string(APPEND looked "\n  - the torch of ${interpreter}: none installed")
  endforeach()
  if(looked STREQUAL "")
    set(looked "\n  - the torch of python3: there is no python3 on PATH")
  endif()
  set(_libtorch_problem "LibTorch was not found.
Looked for ${_libtorch_looked_for} in:
  - LibTorch_ROOT and LIBTORCH: not set, neither as CMake nor as environment variable
  - CMAKE_PREFIX_PATH: none of its folders is one${looked}
Any one of these helps:
  - activate the Python environment that has PyTorch, or install it: pip install torch
  - point to an unpacked LibTorch or a wheel's folder: cmake -DLIBTORCH=/path/to/libtorch
  - let the set-up script of accel fetch a private copy: bash examples/quickstart.sh" PARENT_SCOPE)
endfunction()

# Reads the version from the headers: they are there without Python.
function(_libtorch_read_version)
  set(text "")
  foreach(header torch/headeronly/version.h torch/csrc/api/include/torch/version.h)
    if(EXISTS "${LibTorch_PREFIX}/include/${header}")
      file(READ "${LibTorch_PREFIX}/include/${header}" part)
      string(APPEND text "${part}")
    endif()
  endforeach()
  set(version "")
  foreach(part MAJOR MINOR PATCH)
    if(text MATCHES "#define TORCH_VERSION_${part} +([0-9]+)")
      list(APPEND version "${CMAKE_MATCH_1}")
    endif()
  endforeach()
  list(JOIN version . version)
  set(LibTorch_VERSION "${version}" PARENT_SCOPE)
endfunction()

function(_libtorch_add_library name)
  add_library(LibTorch::${name} SHARED IMPORTED ${ARGN})
  set_target_properties(LibTorch::${name} PROPERTIES
    IMPORTED_LOCATION "${LibTorch_PREFIX}/lib/lib${name}.so"
    INTERFACE_INCLUDE_DIRECTORIES
      "${LibTorch_PREFIX}/include;${LibTorch_PREFIX}/include/torch/csrc/api/include"
    # What LibTorch's own targets define; its distributed headers are empty without.
    INTERFACE_COMPILE_DEFINITIONS "USE_DISTRIBUTED;USE_C10D_GLOO")
endfunction()

function(_libtorch_make_targets)
  if(TARGET LibTorch::LibTorch)
    return()
  endif()
  _libtorch_add_library(c10)
  _libtorch_add_library(torch_cpu)
  # libtorch_cpu.so needs libraries from neighbouring wheels. It finds them itself when it is
  # loaded; the linker has to be told.
  file(GLOB neighbours LIST_DIRECTORIES TRUE "${LibTorch_PREFIX}/../nvidia/*/lib")
  list(TRANSFORM neighbours REPLACE "/torch/\\.\\./nvidia/" "/nvidia/")
  list(TRANSFORM neighbours PREPEND "LINKER:-rpath-link,")
  add_library(LibTorch::LibTorch INTERFACE IMPORTED)
  set_target_properties(LibTorch::LibTorch PROPERTIES
    INTERFACE_LINK_LIBRARIES "LibTorch::torch_cpu;LibTorch::c10"
    INTERFACE_LINK_OPTIONS "LINKER:-rpath-link,${LibTorch_PREFIX}/lib;${neighbours}")
endfunction()

set(LibTorch_FOUND FALSE)
set(_libtorch_problem "")
_libtorch_find_prefix()
if(_libtorch_problem STREQUAL "")
  _libtorch_read_version()
  if(LibTorch_VERSION STREQUAL "")
    set(_libtorch_problem "The LibTorch in ${LibTorch_PREFIX} does not say its version.")
  elseif(LibTorch_VERSION VERSION_LESS "${LibTorch_FIND_VERSION}")
    set(_libtorch_problem "The LibTorch in ${LibTorch_PREFIX} is version ${LibTorch_VERSION}, \
which is too old: accel needs ${LibTorch_FIND_VERSION} or newer.")
  else()
    set(LibTorch_FOUND TRUE)
  endif()
endif()

if(LibTorch_FOUND)
  _libtorch_make_targets()
  if(NOT LibTorch_FIND_QUIETLY)
    message(STATUS "Found LibTorch ${LibTorch_VERSION}: ${LibTorch_PREFIX}")
    string(REGEX MATCH "^[0-9]+\\.[0-9]+" _libtorch_series "${LibTorch_VERSION}")
    if(_libtorch_series VERSION_GREATER _libtorch_tested)
      message(STATUS "Note: accel is tested up to LibTorch ${_libtorch_tested}; "
        "${LibTorch_VERSION} is newer and should work.")
    endif()
  endif()
else()
  set(LibTorch_NOT_FOUND_MESSAGE "${_libtorch_problem}")
  if(LibTorch_FIND_REQUIRED)
    message(FATAL_ERROR "${_libtorch_problem}\n")
  elseif(NOT LibTorch_FIND_QUIETLY)
    message(STATUS "${_libtorch_problem}")
  endif()
endif()
