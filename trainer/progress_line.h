// The line that shows how a run goes.
#pragma once

#include <cstdint>
#include <string>

#include "trainer/metrics.h"

namespace thimble {

// " 123/1000  loss 1.2345  lr 2.0e-04  norm 0.53  1234 tok/s  2.1 GiB  12m05s left", at most `columns` wide: items are
// left out from the end of "step, loss, time left, tokens/s, memory, norm, lr" where they do not fit.
// seconds_left < 0: not known yet.
std::string ProgressText(const StepMetrics& metrics, int64_t total_steps, double seconds_left, int columns);

// "48s", "12m05s", "3h07m", "2d04h".
std::string DurationText(double seconds);
// "812 MiB", "2.1 GiB".
std::string MemoryText(int64_t bytes);

}  // namespace thimble
