// Linked into every test program beside files that include the same headers: a definition that
// lacks its `inline` is then there twice, and the program does not link.
#include <accel/accelerator.hpp>
#include <accel/metrics/accuracy.hpp>
#include <accel/metrics/auroc.hpp>
#include <accel/metrics/confusion_matrix.hpp>
#include <accel/metrics/mean.hpp>
#include <accel/metrics/perplexity.hpp>
#include <accel/metrics/precision_recall_f1.hpp>
#include <accel/metrics/regression.hpp>
#include <accel/metrics/throughput.hpp>
