// Which way of multiplying is faster on this machine: f32, or operands rounded to bf16.
#pragma once

#include <string>

#include "ops/compute.h"

namespace thimble {

struct ComputeRates {
  double f32_gflops = 0;
  double bf16_gflops = 0;
  Compute choice = Compute::kF32;  // what `compute: auto` means here
  std::string reason;              // one line, with both rates
};

// Multiplies matrices of a layer's kind both ways for about 50 ms with NumThreads() threads and compares the best
// runs. bf16 is chosen only where the processor multiplies it (ActiveBf16Path() is kDot or kTiles) at least a tenth
// faster: f32 is more exact. Allocates 3 MiB and its scratch.
ComputeRates MeasureComputeRates();

}  // namespace thimble
