// How long work takes on this machine, whatever else it does meanwhile.
#pragma once

#include <algorithm>
#include <chrono>
#include <ctime>

#include "ops/parallel.h"

namespace thimble {

// Seconds since it was made, of work that keeps all NumThreads() threads busy. Where other programs take turns,
// processor time says more than the clock on the wall: the lesser of the two counts.
class BusyClock {
 public:
  double Seconds() const {
    const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - start_;
    return std::min(wall.count(), (ProcessorSeconds() - processor_start_) / NumThreads() + kTick);
  }

 private:
  static constexpr double kTick = 1e-7;  // never nothing
  static double ProcessorSeconds() {
    timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  }

  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  double processor_start_ = ProcessorSeconds();
};

}  // namespace thimble
