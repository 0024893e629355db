// Runs a planned tape: a loop over steps in one arena.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "ops/memory_block.h"
#include "trainer/memory_plan.h"
#include "trainer/tape.h"
#include "trainer/tier.h"

namespace thimble {

// The memory that the activations and scratch of all tapes share, one tape at a time. Pages are taken from the system
// when first touched and stay.
class Arena {
 public:
  explicit Arena(int64_t bytes) : block_(bytes, true) {}

  // False where the process may not have the address space; errno says why.
  bool ok() const { return block_.ok(); }
  char* data() const { return block_.data(); }
  int64_t bytes() const { return block_.bytes(); }
  // The end of the highest range handed to a kernel so far.
  int64_t high_water_bytes() const { return high_water_; }
  void Touch(int64_t end) {
    if (end > high_water_) high_water_ = end;
  }

 private:
  MemoryBlock block_;
  int64_t high_water_ = 0;
};

// Where a tape's values live while it runs. Slots of a tier are null without transfers.
struct Tiers {
  Arena* device = nullptr;
  Tier* host = nullptr;
  Tier* disk = nullptr;
};

class Executor {
 public:
  // All of them outlive the executor; the arena and each tier hold at least their plan's peak. A tier is null where
  // its plan is empty.
  Executor(const Tape* tape, const TierPlans* plans, const Tiers& tiers);

  // Binds an input value; must hold rows * cols elements until the run ends.
  void Bind(ValueId input, const void* data);
  // Runs all steps. All inputs are bound and the store is allocated. Unavailable when a transfer failed: results are
  // not to be used then.
  absl::Status Run(RunScalars* scalars);
  // A pinned or still living f32 value after a run.
  ConstMatrix Result(ValueId id) const;

 private:
  absl::Status RunTransfer(const Step& step);
  absl::Status PutBack(ValueId fetched);
  Tier* TierOf(ValueId slot) const;
  const PlannedBuffer& BufferOf(ValueId slot) const;

  const Tape* tape_;
  const TierPlans* plans_;
  Tiers tiers_;
  std::vector<void*> addresses_;
  std::vector<std::pair<Tier*, Tier::Ticket>> under_way_;  // by value: the transfer that fills it last
#ifndef NDEBUG
  void PoisonEnded(int32_t step);
#endif
};

}  // namespace thimble
