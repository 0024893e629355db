// How long work takes on this machine, whatever else it does meanwhile.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>

#include "ops/parallel.h"

namespace thimble {

// Seconds of a piece of work that is run several times. Where other programs take turns, processor time says more than
// the clock on the wall: the lesser counts of the fastest run's wall time and the mean of processor time, a thread.
// (The mean, as the system books what other threads use in lumps of some milliseconds.)
class BusyTimer {
 public:
  template <typename Body>
  void Run(const Body& body) {
    const auto start = std::chrono::steady_clock::now();
    const double processor_start = ProcessorSeconds();
    body();
    processor_ += ProcessorSeconds() - processor_start;
    wall_ = std::min(wall_, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    ++runs_;
  }
  double WallSeconds() const { return wall_; }
  // Of work that keeps all NumThreads() threads busy.
  double Seconds() const { return std::min(wall_, processor_ / NumThreads() / runs_ + kTick); }

 private:
  static constexpr double kTick = 1e-7;  // never nothing
  static double ProcessorSeconds() {
    timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  }

  double wall_ = INFINITY;
  double processor_ = 0;
  int runs_ = 0;
};

}  // namespace thimble
