#include "trainer/transfers.h"

#include <algorithm>
#include <utility>

#include "ops/check.h"

namespace thimble {
namespace {

Step Transfer(TransferKind kind, std::vector<ValueId> inputs, std::vector<ValueId> outputs, int32_t layer) {
  Step step;
  step.op = kind == TransferKind::kPut ? "put" : "wait";
  step.transfer = kind;
  step.inputs = std::move(inputs);
  step.outputs = std::move(outputs);
  step.layer = layer;
  return step;
}

// Builds the new order in one walk over the old one.
class Placer {
 public:
  Placer(const std::vector<PendingPut>& puts, Tape* tape) : tape_(*tape), puts_of_step_(tape->steps().size()) {
    for (const PendingPut& put : puts) puts_of_step_[tape_.value(put.value).producer].push_back(put);
    for (const Step& step : tape_.steps()) {
      if (step.transfer == TransferKind::kGet) gets_.push_back(step);
    }
  }

  std::vector<Step> Place() {
    for (size_t s = 0; s < tape_.steps().size(); ++s) {
      const Step& step = tape_.steps()[s];
      if (step.transfer == TransferKind::kGet) {
        // What is needed now and what comes next is under way before this one is waited for.
        IssueGets(needed_ + kTransfersAhead);
        ++needed_;
        continue;
      }
      steps_.push_back(step);
      for (const PendingPut& put : puts_of_step_[s]) AddPut(put, step.layer);
    }
    CHECK_EQ(issued_, gets_.size());
    return std::move(steps_);
  }

 private:
  void AddPut(const PendingPut& put, int32_t layer) {
    if (under_way_.size() == kTransfersAhead) WaitForOldestPut();
    steps_.push_back(Transfer(TransferKind::kPut, {put.value}, {put.slot}, layer));
    under_way_.push_back(put);
  }

  void WaitForOldestPut() {
    const PendingPut oldest = under_way_.front();
    under_way_.erase(under_way_.begin());
    // Its inputs keep the value's memory until here.
    steps_.push_back(Transfer(TransferKind::kWait, {oldest.slot, oldest.value}, {}, tape_.value(oldest.value).layer));
  }

  void IssueGets(size_t last) {
    while (!under_way_.empty()) WaitForOldestPut();
    for (; issued_ < gets_.size() && issued_ <= last; ++issued_) steps_.push_back(gets_[issued_]);
  }

  const Tape& tape_;
  std::vector<std::vector<PendingPut>> puts_of_step_;
  std::vector<Step> gets_;
  size_t issued_ = 0;
  size_t needed_ = 0;
  std::vector<PendingPut> under_way_;
  std::vector<Step> steps_;
};

}  // namespace

void PlaceTransfers(const std::vector<PendingPut>& puts, Tape* tape) {
  if (puts.empty()) return;
  tape->ReplaceSteps(Placer(puts, tape).Place());
}

}  // namespace thimble
