# Installing accel, and packing what is installed: `cpack -G DEB` or `cpack -G TGZ` in the build folder.
#
# Headers and CMake files are the same on every machine, so all of it goes to include/ and share/.

include(CMakePackageConfigHelpers)

# A component of its own: what fetched dependencies install is no part of accel's packages.
set(CMAKE_INSTALL_DEFAULT_COMPONENT_NAME accel)
set(accel_package_dir "${CMAKE_INSTALL_DATADIR}/cmake/accel")
configure_package_config_file(cmake/AccelConfig.cmake.in accelConfig.cmake
  INSTALL_DESTINATION "${accel_package_dir}" NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(accelConfigVersion.cmake
  COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(TARGETS accel EXPORT accelTargets FILE_SET HEADERS)
install(EXPORT accelTargets NAMESPACE accel:: DESTINATION "${accel_package_dir}")
install(TARGETS accel_nccl EXPORT accelNcclTargets)
install(EXPORT accelNcclTargets NAMESPACE accel:: DESTINATION "${accel_package_dir}")
install(
  FILES cmake/FindLibTorch.cmake
        cmake/FindNCCL.cmake
        "${CMAKE_CURRENT_BINARY_DIR}/accelConfig.cmake"
        "${CMAKE_CURRENT_BINARY_DIR}/accelConfigVersion.cmake"
  DESTINATION "${accel_package_dir}")
install(FILES LICENSE README.md DESTINATION "${CMAKE_INSTALL_DOCDIR}")

# ---- packages -----------------------------------------------------------------------------------

# A project that vendors accel packs itself.
if(NOT PROJECT_IS_TOP_LEVEL)
  return()
endif()

set(CMAKE_SKIP_INSTALL_ALL_DEPENDENCY ON)  # nothing that is built is installed: packing builds nothing
set(CPACK_INSTALL_CMAKE_PROJECTS "${PROJECT_BINARY_DIR};accel;accel;/")
set(CPACK_PACKAGE_CONTACT "the authors of accel")
set(CPACK_PACKAGE_DESCRIPTION "accel takes a plain LibTorch training loop and trains it on any number of ranks.
It is header-only, so this package is all there is of it. It needs LibTorch,
which comes with PyTorch's wheel or as an archive; its CMake files look for either.")
set(CPACK_PACKAGE_FILE_NAME "accel-${PROJECT_VERSION}")
set(CPACK_RESOURCE_FILE_LICENSE "${PROJECT_SOURCE_DIR}/LICENSE")
set(CPACK_VERBATIM_VARIABLES ON)

set(CPACK_DEBIAN_PACKAGE_NAME libaccel-dev)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)  # libaccel-dev_0.1.0_all.deb
set(CPACK_DEBIAN_PACKAGE_ARCHITECTURE all)
set(CPACK_DEBIAN_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_PACKAGE_DEPENDS "nlohmann-json3-dev (>= 3.10)")

include(CPack)
