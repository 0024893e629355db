#include "ops/parallel.h"

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>

namespace thimble {
namespace {

std::atomic<int> g_threads{0};

}  // namespace

int AvailableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

int NumThreads() {
  int threads = g_threads.load(std::memory_order_relaxed);
  if (threads == 0) {
    threads = AvailableCores();
    g_threads.store(threads, std::memory_order_relaxed);
  }
  return threads;
}

void SetNumThreads(int threads) { g_threads.store(std::max(1, threads), std::memory_order_relaxed); }

void ParallelFor(int64_t count, absl::FunctionRef<void(int64_t, int)> body) {
  const int threads = static_cast<int>(std::min<int64_t>(NumThreads(), count));
  if (threads < 2 || omp_in_parallel()) {
    for (int64_t i = 0; i < count; ++i) body(i, 0);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t i = 0; i < count; ++i) body(i, omp_get_thread_num());
}

void ParallelRanges(int64_t count, int64_t grain, absl::FunctionRef<void(int64_t, int64_t)> body) {
  if (count <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  const int64_t threads = NumThreads();
  const int64_t length = std::max(grain, (count + threads - 1) / threads);
  const int64_t ranges = (count + length - 1) / length;
  ParallelFor(ranges, [&](int64_t i, int) { body(i * length, std::min(count, (i + 1) * length)); });
}

}  // namespace thimble
