# Finds NCCL, and LibTorch's CUDA side, and describes them as NCCL::NCCL: after FindLibTorch, whose
# LibTorch_PREFIX it reads.
#
# Looked at, in this order: NCCL_ROOT (CMake or environment variable); the wheels next to
# LibTorch_PREFIX (nvidia/nccl, nvidia/cu*); the system. One soname serves a whole process and the
# first one loaded wins, so LibTorch's own NCCL is taken before the system's.
#
# Sets NCCL_FOUND, NCCL_VERSION.

cmake_path(SET _nccl_wheels NORMALIZE "${LibTorch_PREFIX}/../nvidia")
file(GLOB _nccl_cuda LIST_DIRECTORIES TRUE "${_nccl_wheels}/cu[0-9]*" "${_nccl_wheels}/cuda_runtime")
set(_nccl_hints "${NCCL_ROOT}" "$ENV{NCCL_ROOT}" "${_nccl_wheels}/nccl")
list(FILTER _nccl_hints EXCLUDE REGEX "^$")
set(_nccl_cuda_hints ${_nccl_cuda} "$ENV{CUDA_HOME}" /usr/local/cuda)

find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${_nccl_hints} PATH_SUFFIXES include)
# A wheel has no bare libnccl.so: the linker gets the full name.
find_library(NCCL_LIBRARY NAMES libnccl.so.2 nccl HINTS ${_nccl_hints} PATH_SUFFIXES lib)
find_path(NCCL_CUDA_INCLUDE_DIR cuda_runtime_api.h HINTS ${_nccl_cuda_hints} PATH_SUFFIXES include)
# What those of LibTorch and NCCL include; packages of their own among the wheels.
find_path(NCCL_CUDA_CRT_INCLUDE_DIR crt/host_config.h HINTS ${_nccl_cuda_hints} PATH_SUFFIXES include)
find_path(NCCL_CUDA_NV_INCLUDE_DIR nv/target HINTS ${_nccl_cuda_hints} PATH_SUFFIXES include include/cccl)
find_library(NCCL_CUDART_LIBRARY NAMES libcudart.so.13 libcudart.so.12 cudart
  HINTS ${_nccl_cuda_hints} PATH_SUFFIXES lib lib64)
find_library(NCCL_C10_CUDA_LIBRARY c10_cuda PATHS "${LibTorch_PREFIX}/lib" NO_DEFAULT_PATH)
find_library(NCCL_TORCH_CUDA_LIBRARY torch_cuda PATHS "${LibTorch_PREFIX}/lib" NO_DEFAULT_PATH)
mark_as_advanced(NCCL_INCLUDE_DIR NCCL_LIBRARY NCCL_CUDA_INCLUDE_DIR NCCL_CUDA_CRT_INCLUDE_DIR
  NCCL_CUDA_NV_INCLUDE_DIR NCCL_CUDART_LIBRARY NCCL_C10_CUDA_LIBRARY NCCL_TORCH_CUDA_LIBRARY)

unset(NCCL_VERSION)
if(NCCL_INCLUDE_DIR)
  file(READ "${NCCL_INCLUDE_DIR}/nccl.h" _nccl_text LIMIT 4096)
  set(_nccl_parts "")
  foreach(_nccl_part MAJOR MINOR PATCH)
    if(_nccl_text MATCHES "#define NCCL_${_nccl_part} +([0-9]+)")
      list(APPEND _nccl_parts "${CMAKE_MATCH_1}")
    endif()
  endforeach()
  list(JOIN _nccl_parts . NCCL_VERSION)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(NCCL
  REQUIRED_VARS NCCL_LIBRARY NCCL_INCLUDE_DIR NCCL_CUDA_INCLUDE_DIR NCCL_CUDA_CRT_INCLUDE_DIR
                NCCL_CUDA_NV_INCLUDE_DIR NCCL_CUDART_LIBRARY NCCL_C10_CUDA_LIBRARY NCCL_TORCH_CUDA_LIBRARY
  VERSION_VAR NCCL_VERSION
  REASON_FAILURE_MESSAGE
    "it needs a LibTorch for CUDA, NCCL and the headers of the CUDA runtime, crt/ and nv/ among them \
(pip install nvidia-cuda-crt nvidia-cuda-cccl, or set NCCL_ROOT and CUDA_HOME)")

if(NCCL_FOUND AND NOT TARGET NCCL::NCCL)
  add_library(NCCL::NCCL SHARED IMPORTED)
  # Nothing refers to libtorch_cuda by name, and a linker that drops what is not referred to would
  # leave LibTorch without CUDA. The libraries find their own neighbours when they are loaded.
  get_filename_component(_nccl_dir "${NCCL_LIBRARY}" DIRECTORY)
  get_filename_component(_nccl_cudart_dir "${NCCL_CUDART_LIBRARY}" DIRECTORY)
  set_target_properties(NCCL::NCCL PROPERTIES
    IMPORTED_LOCATION "${NCCL_LIBRARY}"
    INTERFACE_INCLUDE_DIRECTORIES "${NCCL_INCLUDE_DIR};${NCCL_CUDA_INCLUDE_DIR};${NCCL_CUDA_CRT_INCLUDE_DIR};\
${NCCL_CUDA_NV_INCLUDE_DIR}"
    INTERFACE_LINK_LIBRARIES "${NCCL_CUDART_LIBRARY};${NCCL_C10_CUDA_LIBRARY}"
    INTERFACE_LINK_OPTIONS "LINKER:--push-state,--no-as-needed;${NCCL_TORCH_CUDA_LIBRARY};LINKER:--pop-state;\
LINKER:-rpath-link,${_nccl_dir};LINKER:-rpath-link,${_nccl_cudart_dir}")
endif()
