// Runs a planned tape: a loop over steps in one arena.
#pragma once

#include <cstdint>
#include <vector>

#include "trainer/memory_plan.h"
#include "trainer/tape.h"

namespace thimble {

// The memory that the activations and scratch of all tapes share, one tape at a time. Pages are taken from the system
// when first touched and stay.
class Arena {
 public:
  explicit Arena(int64_t bytes);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  char* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  // The end of the highest range handed to a kernel so far.
  int64_t high_water_bytes() const { return high_water_; }
  void Touch(int64_t end) {
    if (end > high_water_) high_water_ = end;
  }

 private:
  char* data_ = nullptr;
  int64_t bytes_ = 0;
  int64_t high_water_ = 0;
};

class Executor {
 public:
  // The tape, plan and arena outlive the executor; the arena holds at least plan->peak_bytes.
  Executor(const Tape* tape, const MemoryPlan* plan, Arena* arena);

  // Binds an input value; must hold rows * cols elements until the run ends.
  void Bind(ValueId input, const void* data);
  // Runs all steps. All inputs are bound and the store is allocated.
  void Run(RunScalars* scalars);
  // A pinned or still living f32 value after a run.
  ConstMatrix Result(ValueId id) const;

 private:
  const Tape* tape_;
  const MemoryPlan* plan_;
  Arena* arena_;
  std::vector<void*> addresses_;
#ifndef NDEBUG
  void PoisonEnded(int32_t step);
#endif
};

}  // namespace thimble
