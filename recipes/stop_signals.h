// What SIGINT and SIGTERM do to a run.
#pragma once

#include <atomic>

namespace thimble {

// While there is nothing to save: ends the process with exit code 130.
void StopAtOnceOnSignals();
// While steps are taken: sets the flag, which the loop looks at after each step. A second signal kills as usual.
const std::atomic<bool>& StopAfterStepOnSignals();

}  // namespace thimble
