// The machine's memory bandwidth, and counters that state a kernel's traffic as a share of it.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "benchmark/benchmark.h"
#include "ops/elementwise.h"
#include "ops/parallel.h"

namespace thimble {

// Bytes a second, read plus written, of y = a + b with all threads: the best of ten passes over 3 * 64 MiB, measured
// once a process.
inline double StreamBytesPerSecond() {
  static const double rate = [] {
    constexpr int64_t kCount = 1 << 24;
    std::vector<float> a(kCount, 1), b(kCount, 2), y(kCount);
    double best = 0;
    for (int pass = 0; pass < 10; ++pass) {
      const auto start = std::chrono::steady_clock::now();
      Add({a.data(), 1, kCount}, {b.data(), 1, kCount}, {y.data(), 1, kCount});
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      best = std::max(best, 3.0 * sizeof(float) * kCount / seconds.count());
    }
    return best;
  }();
  return rate;
}

// `bytes`: what one iteration must read and write once. GB/s, and GB/s over those of the machine.
inline void SetBandwidth(benchmark::State& state, double bytes) {
  state.counters["GB/s"] = benchmark::Counter(bytes * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["of_stream"] =
      benchmark::Counter(bytes / StreamBytesPerSecond(), benchmark::Counter::kIsIterationInvariantRate);
}

}  // namespace thimble
