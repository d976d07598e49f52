# Packs accel and unpacks it as the consumer's copy; says what a package must hold and must not.

cmake_minimum_required(VERSION 3.25)

# run(<command...>): it must succeed
function(run)
  execute_process(COMMAND ${ARGN} WORKING_DIRECTORY "${WORK_DIR}"
    OUTPUT_VARIABLE output ERROR_VARIABLE output RESULT_VARIABLE failed)
  if(failed)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}:\n${output}")
  endif()
endfunction()

# The files below a folder, sorted, as one list.
function(files_of folder result)
  file(GLOB_RECURSE files RELATIVE "${folder}" "${folder}/*")
  set(${result} "${files}" PARENT_SCOPE)
endfunction()

function(expect_same what files)
  if(NOT files STREQUAL expected)
    message(FATAL_ERROR "${what} holds\n  ${files}\nand not\n  ${expected}")
  endif()
endfunction()

file(REMOVE_RECURSE "${WORK_DIR}")
file(MAKE_DIRECTORY "${WORK_DIR}/deb" "${WORK_DIR}/tgz")

# What belongs in: the headers, the CMake files, LICENSE and README.
file(GLOB_RECURSE expected RELATIVE "${SOURCE_DIR}" "${SOURCE_DIR}/include/*")
foreach(file accelConfig accelConfigVersion accelTargets accelNcclTargets FindLibTorch FindNCCL)
  list(APPEND expected "share/cmake/accel/${file}.cmake")
endforeach()
list(APPEND expected share/doc/accel/LICENSE share/doc/accel/README.md)
list(SORT expected)

# A .deb is an archive of archives, which CMake reads where there is no dpkg.
foreach(generator DEB TGZ)
  run("${CPACK}" -G ${generator} --config "${BUILD_DIR}/CPackConfig.cmake" -B "${WORK_DIR}")
endforeach()
run("${CMAKE_COMMAND}" -E tar xf "libaccel-dev_${VERSION}_all.deb")
run("${CMAKE_COMMAND}" -E tar xf control.tar.gz)
run("${CMAKE_COMMAND}" -E chdir deb "${CMAKE_COMMAND}" -E tar xf ../data.tar.gz)
run("${CMAKE_COMMAND}" -E chdir tgz "${CMAKE_COMMAND}" -E tar xf "../accel-${VERSION}.tar.gz")
file(READ "${WORK_DIR}/control" control)
foreach(line "Package: libaccel-dev" "Version: ${VERSION}" "Architecture: all" "Depends: nlohmann-json3-dev")
  if(NOT control MATCHES "${line}")
    message(FATAL_ERROR "the control file of the .deb has no \"${line}\":\n${control}")
  endif()
endforeach()
files_of("${WORK_DIR}/deb/usr" files)
expect_same("the .deb" "${files}")
files_of("${WORK_DIR}/tgz/accel-${VERSION}" files)
expect_same("the .tar.gz" "${files}")

# The two ways of those who pack by themselves.
run("${CMAKE_COMMAND}" -E env "DESTDIR=${WORK_DIR}/staged"
  "${CMAKE_COMMAND}" --install "${BUILD_DIR}" --prefix /usr --component accel)
files_of("${WORK_DIR}/staged/usr" files)
expect_same("DESTDIR" "${files}")
run("${CMAKE_COMMAND}" --install "${BUILD_DIR}" --prefix "${WORK_DIR}/prefix")
foreach(file IN LISTS expected)
  if(NOT EXISTS "${WORK_DIR}/prefix/${file}")
    message(FATAL_ERROR "cmake --install leaves out ${file}")
  endif()
endforeach()

# Nothing may remember where it was made.
file(GLOB files "${WORK_DIR}/prefix/share/cmake/accel/*")
foreach(file IN LISTS files)
  file(READ "${file}" text)
  foreach(place "${SOURCE_DIR}" "${BUILD_DIR}")
    string(FIND "${text}" "${place}" found)
    if(NOT found EQUAL -1)
      message(FATAL_ERROR "${file} names ${place}")
    endif()
  endforeach()
endforeach()

# What a fetched nlohmann_json installs; nothing where the machine has one.
run("${CMAKE_COMMAND}" --install "${BUILD_DIR}" --prefix "${WORK_DIR}/fetched" --component Unspecified)
