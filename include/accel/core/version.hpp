// The version of accel, in one place: CMake reads it from this file.
#pragma once

// Every file opens `namespace accel::inline v0_1`: two vendored copies of different minor versions
// can be linked into one program.
#define ACCEL_VERSION "0.1.0"
