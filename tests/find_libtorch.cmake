# What the find module says when there is no LibTorch, or the wrong one: one message each.

cmake_minimum_required(VERSION 3.25)

file(REMOVE_RECURSE "${WORK_DIR}")
file(WRITE "${WORK_DIR}/project/CMakeLists.txt" "
cmake_minimum_required(VERSION 3.25)
project(probe NONE)
list(APPEND CMAKE_MODULE_PATH \"${CMAKE_CURRENT_LIST_DIR}/../cmake\")
find_package(LibTorch 2.11 REQUIRED)
message(STATUS \"in \${LibTorch_PREFIX}\")
")

# fake(<folder> <major> <minor>): something that looks like LibTorch
function(fake folder major minor)
  file(WRITE "${WORK_DIR}/${folder}/include/torch/csrc/api/include/torch/torch.h" "")
  file(WRITE "${WORK_DIR}/${folder}/lib/libtorch_cpu.so" "")
  file(WRITE "${WORK_DIR}/${folder}/include/torch/headeronly/version.h"
    "#define TORCH_VERSION_MAJOR ${major}\n#define TORCH_VERSION_MINOR ${minor}\n"
    "#define TORCH_VERSION_PATCH 0\n")
endfunction()

# A python3 whose torch is in the given folder; with an empty one it has none.
function(fake_python folder)
  file(WRITE "${WORK_DIR}/bin/python3" "#!/bin/sh\necho '${folder}'\n")
  file(CHMOD "${WORK_DIR}/bin/python3" PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE)
endfunction()

# expect(<ok|error> <sentence> [cmake arguments])
function(expect outcome sentence)
  file(REMOVE_RECURSE "${WORK_DIR}/build")
  execute_process(
    COMMAND "${CMAKE_COMMAND}" -E env --unset=LIBTORCH --unset=LibTorch_ROOT --unset=VIRTUAL_ENV
      "PATH=${WORK_DIR}/bin:$ENV{PATH}"
      "${CMAKE_COMMAND}" -G "${GENERATOR}" -S "${WORK_DIR}/project" -B "${WORK_DIR}/build" ${ARGN}
    OUTPUT_VARIABLE output ERROR_VARIABLE output RESULT_VARIABLE failed)
  string(REGEX REPLACE "[ \n]+" " " flat "${output}")  # CMake breaks long lines
  string(FIND "${flat}" "${sentence}" found)
  if(found EQUAL -1)
    message(FATAL_ERROR "expected \"${sentence}\", got:\n${output}")
  endif()
  if((outcome STREQUAL "ok" AND failed) OR (outcome STREQUAL "error" AND NOT failed))
    message(FATAL_ERROR "expected ${outcome}, got ${failed}:\n${output}")
  endif()
  message(STATUS "${outcome}: ${sentence}")
endfunction()

fake(tested 2 11)
fake(old 2 4)
fake(new 3 0)

fake_python("")
expect(error "LibTorch was not found.")
expect(error "LibTorch_ROOT and LIBTORCH: not set")
expect(error "the torch of ${WORK_DIR}/bin/python3: none installed")
expect(error "pip install torch")
expect(error "LIBTORCH is ${WORK_DIR}/nowhere, but there is no LibTorch in it."
  "-DLIBTORCH=${WORK_DIR}/nowhere")
expect(error
  "${WORK_DIR}/old is version 2.4.0, which is too old: accel needs 2.11 or newer."
  "-DLIBTORCH=${WORK_DIR}/old")
expect(ok "accel is tested up to LibTorch 2.15; 3.0.0 is newer" "-DLibTorch_ROOT=${WORK_DIR}/new")
expect(ok "Found LibTorch 2.11.0" "-DLIBTORCH=${WORK_DIR}/tested")
expect(ok "Found LibTorch ${LIBTORCH_VERSION}: ${LIBTORCH_PREFIX}" "-DLIBTORCH=${LIBTORCH_PREFIX}")

fake_python("${WORK_DIR}/tested")
expect(ok "in ${WORK_DIR}/tested")
# A place that was named comes before Python's.
expect(ok "in ${WORK_DIR}/new" "-DLIBTORCH=${WORK_DIR}/new")
