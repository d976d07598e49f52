// Linked into every test program beside files that include the same headers: a definition that
// lacks its `inline` is then there twice, and the program does not link.
#include <accel/accelerator.hpp>
