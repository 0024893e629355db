// The only door to OpenMP: a loop whose iterations are split among threads by index.
// Results must not depend on the split: each output element is written by one iteration, and sums are cut by shape.
#pragma once

#include <cstdint>

#include "absl/functional/function_ref.h"

namespace thimble {

// The cores this process may run on.
int AvailableCores();
// Number of threads the loops use; set once at start (default: AvailableCores()).
int NumThreads();
void SetNumThreads(int threads);

// Calls body(i, thread) for every i in [0, count), thread in [0, NumThreads()); iterations are handed out one by one
// in increasing order (dynamic), so `thread` may only choose scratch memory, never the arithmetic.
// Runs on the calling thread alone when count < 2, with one thread, or inside another parallel loop.
void ParallelFor(int64_t count, absl::FunctionRef<void(int64_t i, int thread)> body);

// Calls body(begin, end) on ranges that cover [0, count) once; ranges are at least `grain` long (the last may be
// shorter). For element-wise loops.
void ParallelRanges(int64_t count, int64_t grain, absl::FunctionRef<void(int64_t begin, int64_t end)> body);

}  // namespace thimble
