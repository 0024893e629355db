#include "trainer/transfers.h"

#include <algorithm>
#include <utility>

#include "ops/check.h"

namespace thimble {

Step MakeTransfer(TransferKind kind, std::vector<ValueId> inputs, std::vector<ValueId> outputs, int32_t layer) {
  Step step;
  step.op = kind == TransferKind::kPut ? "put" : kind == TransferKind::kGet ? "get" : "wait";
  step.transfer = kind;
  step.inputs = std::move(inputs);
  step.outputs = std::move(outputs);
  step.layer = layer;
  return step;
}

namespace {

// Builds the new order in one walk over the old one.
class Placer {
 public:
  Placer(const std::vector<PendingPut>& puts, Tape* tape)
      : tape_(*tape), puts_of_step_(tape->steps().size()), old_(tape->TakeSteps()), filled_(tape->values().size()) {
    for (const PendingPut& put : puts) puts_of_step_[tape_.value(put.value).producer].push_back(put);
    for (const Step& step : old_) {
      if (step.transfer == TransferKind::kGet) gets_.push_back(step);
    }
  }

  std::vector<Step> Place() {
    for (size_t s = 0; s < old_.size(); ++s) {
      Step& step = old_[s];
      if (step.transfer == TransferKind::kGet) {
        // What is needed now and what comes next is under way before this one is waited for.
        IssueGets(needed_ + kTransfersAhead);
        ++needed_;
        continue;
      }
      while (!under_way_.empty() && under_way_.front().begun + kStepsOfPut <= s) WaitForOldestPut();
      const int32_t layer = step.layer;
      steps_.push_back(std::move(step));
      for (const PendingPut& put : puts_of_step_[s]) AddPut(put, layer, s);
    }
    while (!under_way_.empty()) WaitForOldestPut();
    CHECK_EQ(issued_, gets_.size());
    return std::move(steps_);
  }

 private:
  struct UnderWay {
    PendingPut put;
    size_t begun = 0;
  };

  void AddPut(const PendingPut& put, int32_t layer, size_t step) {
    if (under_way_.size() == kTransfersAhead) WaitForOldestPut();
    steps_.push_back(MakeTransfer(TransferKind::kPut, {put.value}, {put.slot}, layer));
    under_way_.push_back({put, step});
    filled_[put.slot] = true;
  }

  void WaitForOldestPut() {
    const PendingPut oldest = under_way_.front().put;
    under_way_.erase(under_way_.begin());
    // Its inputs keep the value's memory until here.
    steps_.push_back(
        MakeTransfer(TransferKind::kWait, {oldest.slot, oldest.value}, {}, tape_.value(oldest.value).layer));
  }

  void IssueGets(size_t last) {
    // A tier's transfers run in their order, so a get need not wait for its put, only stand behind it.
    for (; issued_ < gets_.size() && issued_ <= last && filled_[gets_[issued_].inputs[0]]; ++issued_) {
      steps_.push_back(gets_[issued_]);  // a copy: its slot is read again above
    }
    CHECK_GT(issued_, needed_);
  }

  const Tape& tape_;
  std::vector<std::vector<PendingPut>> puts_of_step_;
  std::vector<Step> old_;
  std::vector<Step> gets_;
  size_t issued_ = 0;
  size_t needed_ = 0;
  std::vector<UnderWay> under_way_;
  std::vector<bool> filled_;  // by value: a slot whose put is begun
  std::vector<Step> steps_;
};

}  // namespace

void PlaceTransfers(const std::vector<PendingPut>& puts, Tape* tape) {
  if (puts.empty()) return;
  tape->ReplaceSteps(Placer(puts, tape).Place());
}

namespace {

// Steps that use one fetched copy, in order.
struct WeightUse {
  StoreId store = -1;
  int32_t layer = -1;
  std::vector<int32_t> steps;
};

bool IsStreamed(const Tape& tape, ValueId id) {
  const Value& value = tape.value(id);
  return value.placement == Placement::kStore && tape.store().entry(value.store).slot >= 0 &&
         tape.store().entry(value.store).reader == nullptr;
}

// In order of first use. A use belongs to the one before when no step of another layer lies between.
std::vector<WeightUse> FindWeightUses(const Tape& tape) {
  std::vector<WeightUse> uses;
  std::vector<int32_t> open;    // by store id: the use that may go on, -1
  std::vector<StoreId> opened;  // those set in `open`
  int32_t layer = -1;
  for (size_t s = 0; s < tape.steps().size(); ++s) {
    const Step& step = tape.steps()[s];
    if (step.transfer != TransferKind::kNone) continue;
    if (step.layer != layer) {
      for (StoreId id : opened) open[id] = -1;
      opened.clear();
      layer = step.layer;
    }
    for (ValueId input : step.inputs) {
      if (!IsStreamed(tape, input)) continue;
      const StoreId id = tape.value(input).store;
      if (static_cast<size_t>(id) >= open.size()) open.resize(id + 1, -1);
      if (open[id] < 0) {
        open[id] = static_cast<int32_t>(uses.size());
        opened.push_back(id);
        uses.push_back({id, layer, {}});
      }
      uses[open[id]].steps.push_back(static_cast<int32_t>(s));
    }
  }
  return uses;
}

}  // namespace

void FetchStreamedWeights(Tape* tape) {
  const std::vector<WeightUse> uses = FindWeightUses(*tape);
  if (uses.empty()) return;
  std::vector<Step> old = tape->TakeSteps();
  std::vector<std::vector<Step>> before(old.size());  // what goes in front of each step
  for (size_t u = 0; u < uses.size(); ++u) {
    const WeightUse& use = uses[u];
    const ValueId weight = tape->Persistent(use.store);
    tape->SetLayer(use.layer);
    const ValueId fetched = tape->FetchedWeight(use.store);
    for (int32_t s : use.steps) std::replace(old[s].inputs.begin(), old[s].inputs.end(), weight, fetched);
    Step get = MakeTransfer(TransferKind::kGet, {weight}, {fetched}, use.layer);
    before[u == 0 ? 0 : uses[u - 1].steps.front()].push_back(std::move(get));
  }
  // A wait stands behind the gets that begin at the same step, so that they are under way during it.
  for (const WeightUse& use : uses) {
    const ValueId fetched =
        *std::find_if(old[use.steps.front()].inputs.begin(), old[use.steps.front()].inputs.end(), [&](ValueId id) {
          const Value& value = tape->value(id);
          return value.packed_bytes > 0 && value.store == use.store;
        });
    before[use.steps.front()].push_back(MakeTransfer(TransferKind::kWait, {fetched}, {}, use.layer));
  }
  tape->SetLayer(-1);
  std::vector<Step> steps;
  for (size_t s = 0; s < old.size(); ++s) {
    for (Step& transfer : before[s]) steps.push_back(std::move(transfer));
    steps.push_back(std::move(old[s]));
  }
  tape->ReplaceSteps(std::move(steps));
}

}  // namespace thimble
