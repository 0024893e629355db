// What a step of a tape costs: floating-point operations and bytes moved, from its op and shapes alone; and the time
// that a tape takes at a machine's rates.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "ops/compute.h"
#include "trainer/machine_rates.h"
#include "trainer/tape.h"

namespace thimble {

// What shapes do not say.
struct CostContext {
  int64_t sequence_tokens = 0;   // length of the samples in a batch: what attention sees grows with it
  std::vector<int64_t> windows;  // of attention by layer, 0 for none; empty: none anywhere
  Compute compute = Compute::kF32;
};

struct StepCost {
  enum class Unit : uint8_t { kMatMul, kAttention, kMemory };
  Unit unit = Unit::kMemory;  // whose rate bounds the operations
  double flops = 0;           // a multiplication and an addition are two; element-wise ops count as none
  int64_t bytes = 0;          // every input read once and every output written once
};

StepCost CostOf(const Tape& tape, const Step& step, const CostContext& context);

struct TapeTime {
  double seconds = 0;
  double compute_seconds = 0;  // of the steps that the arithmetic bounds; the others wait for memory
  double flops = 0;
  double bytes = 0;
  std::vector<std::pair<std::string, double>> by_op;  // seconds, largest first

  // Adds `times` runs of another tape.
  void Add(const TapeTime& other, double times);
};

// A step takes its operations or its bytes at the machine's rate, whichever is longer.
TapeTime PredictTime(const Tape& tape, const CostContext& context, const MachineRates& rates);

}  // namespace thimble
