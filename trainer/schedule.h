// Learning-rate schedules as factors of the peak rate.
#pragma once

#include <cstdint>

namespace thimble {

// kTwoStage: BitNet b1.58's, a linear decay to 0 over all steps whose peak falls to second_peak at their half, where
// weight decay ends. Source: "The Era of 1-bit LLMs: Training Tips, Code and FAQ".
enum class ScheduleKind : uint8_t { kConstant, kLinear, kCosine, kWsd, kTwoStage };

struct ScheduleOptions {
  ScheduleKind kind = ScheduleKind::kCosine;
  int64_t total_steps = 0;
  int64_t warmup_steps = 0;
  int64_t decay_steps = 0;  // WSD only: length of the final linear decay
  double min_ratio = 0;     // the factor that the decay ends at
  double second_peak = 1;   // kTwoStage: of the second half, as a factor of the first one's
};

// Factor for update `step` (from 0). Warm-up rises linearly, (step + 1) / warmup, so that the first update learns;
// then the decay reaches min_ratio at total_steps and stays there.
double ScheduleFactor(const ScheduleOptions& options, int64_t step);
// That of weight decay.
double DecayFactor(const ScheduleOptions& options, int64_t step);

}  // namespace thimble
