// Learning-rate schedules as factors of the peak rate.
#pragma once

#include <cstdint>

namespace thimble {

enum class ScheduleKind : uint8_t { kConstant, kLinear, kCosine, kWsd };

struct ScheduleOptions {
  ScheduleKind kind = ScheduleKind::kCosine;
  int64_t total_steps = 0;
  int64_t warmup_steps = 0;
  int64_t decay_steps = 0;  // WSD only: length of the final linear decay
  double min_ratio = 0;     // the factor that the decay ends at
};

// Factor for update `step` (from 0). Warm-up rises linearly, (step + 1) / warmup, so that the first update learns;
// then the decay reaches min_ratio at total_steps and stays there.
double ScheduleFactor(const ScheduleOptions& options, int64_t step);

}  // namespace thimble
