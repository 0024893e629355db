#include "trainer/schedule.h"

#include <algorithm>
#include <cmath>

namespace thimble {

namespace {

bool InSecondStage(const ScheduleOptions& options, int64_t step) { return 2 * step >= options.total_steps; }

}  // namespace

double ScheduleFactor(const ScheduleOptions& options, int64_t step) {
  if (step < options.warmup_steps) return static_cast<double>(step + 1) / static_cast<double>(options.warmup_steps);
  const double floor = options.min_ratio;
  const auto progress = [step](int64_t begin, int64_t end) {
    if (end <= begin) return 1.0;
    return std::clamp(static_cast<double>(step - begin) / static_cast<double>(end - begin), 0.0, 1.0);
  };
  switch (options.kind) {
    case ScheduleKind::kConstant:
      return 1;
    case ScheduleKind::kLinear:
      return floor + (1 - floor) * (1 - progress(options.warmup_steps, options.total_steps));
    case ScheduleKind::kCosine:
      return floor + (1 - floor) * 0.5 * (1 + std::cos(M_PI * progress(options.warmup_steps, options.total_steps)));
    case ScheduleKind::kWsd: {
      const int64_t begin = std::max(options.warmup_steps, options.total_steps - options.decay_steps);
      if (step < begin) return 1;
      return floor + (1 - floor) * (1 - progress(begin, options.total_steps));
    }
    case ScheduleKind::kTwoStage: {
      const double peak = InSecondStage(options, step) ? options.second_peak : 1;
      return peak * (floor + (1 - floor) * (1 - progress(0, options.total_steps)));
    }
  }
  return 1;
}

double DecayFactor(const ScheduleOptions& options, int64_t step) {
  return options.kind == ScheduleKind::kTwoStage && InSecondStage(options, step) ? 0 : 1;
}

}  // namespace thimble
