#include "trainer/idle_values.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "trainer/transfers.h"

namespace thimble {
namespace {

class Mover {
 public:
  Mover(const SavePlan& plan, Placement tier, Tape* tape) : plan_(plan), tier_(tier), tape_(*tape) {
    steps_ = tape_.TakeSteps();
    const size_t values = tape_.values().size();
    uses_.resize(values);
    written_.push_back(0);
    for (size_t s = 0; s < steps_.size(); ++s) {
      int64_t bytes = 0;
      for (ValueId id : steps_[s].outputs) bytes += tape_.value(id).bytes();
      written_.push_back(written_.back() + bytes);
      for (ValueId id : steps_[s].inputs) {
        if (uses_[id].empty() || uses_[id].back() != static_cast<int32_t>(s)) {
          uses_[id].push_back(static_cast<int32_t>(s));
        }
      }
    }
  }

  void Run(const std::vector<ValueId>& pinned) {
    std::vector<bool> stays(tape_.values().size(), false);
    for (ValueId id : pinned) stays[id] = true;
    fetches_.resize(steps_.size());
    const ValueId count = static_cast<ValueId>(tape_.values().size());
    for (ValueId id = 0; id < count; ++id) {
      if (!stays[id] && MayMove(id)) Split(id);
    }
    if (puts_.empty()) return tape_.ReplaceSteps(std::move(steps_));
    std::vector<Step> steps;
    for (size_t s = 0; s < steps_.size(); ++s) {
      for (Step& fetch : fetches_[s]) steps.push_back(std::move(fetch));
      steps.push_back(std::move(steps_[s]));
    }
    tape_.ReplaceSteps(std::move(steps));
    PlaceTransfers(puts_, &tape_);
  }

 private:
  bool MayMove(ValueId id) const {
    const Value& value = tape_.value(id);
    return value.placement == Placement::kActivation && value.producer >= 0 && value.bytes() >= kSmallestTransferBytes;
  }

  Placement TierOf(const Value& value) const {
    const SaveAction action = plan_.ActionOf(value);
    if (action == SaveAction::kOffloadHost) return Placement::kHost;
    return action == SaveAction::kOffloadDisk ? Placement::kDisk : tier_;
  }

  // Whether steps (from, to) write so much that the value is not to wait in the arena.
  bool IsIdle(int32_t from, int32_t to, int64_t bytes) const {
    return written_[to] - written_[from + 1] >= kIdleFactor * bytes;
  }

  void Split(ValueId id) {
    const int64_t bytes = tape_.value(id).bytes();
    int32_t last = tape_.value(id).producer;
    ValueId slot = kNoValue, copy = kNoValue;
    for (int32_t use : uses_[id]) {
      if (IsIdle(last, use, bytes)) {
        if (slot == kNoValue) {
          slot = tape_.Slot(id, TierOf(tape_.value(id)));
          puts_.push_back({id, slot});
        }
        copy = Fetch(id, slot, use);
      }
      if (copy != kNoValue) std::replace(steps_[use].inputs.begin(), steps_[use].inputs.end(), id, copy);
      last = use;
    }
  }

  ValueId Fetch(ValueId id, ValueId slot, int32_t before) {
    const Value of = tape_.value(id);
    tape_.SetLayer(steps_[before].layer);
    const ValueId copy = tape_.Activation(absl::StrCat(of.name, "\""), of.rows, of.cols);
    tape_.SetLayer(-1);
    const int32_t layer = steps_[before].layer;
    fetches_[before].push_back(MakeTransfer(TransferKind::kGet, {slot}, {copy}, layer));
    fetches_[before].push_back(MakeTransfer(TransferKind::kWait, {copy, slot}, {}, layer));
    return copy;
  }

  const SavePlan& plan_;
  Placement tier_;
  Tape& tape_;
  std::vector<Step> steps_;
  std::vector<std::vector<int32_t>> uses_;  // by value: steps that read it
  std::vector<int64_t> written_;            // bytes that the steps before each one write
  std::vector<std::vector<Step>> fetches_;  // what goes in front of each step
  std::vector<PendingPut> puts_;
};

}  // namespace

void MoveIdleValues(const SavePlan& plan, Placement tier, const std::vector<ValueId>& pinned, Tape* tape) {
  Mover(plan, tier, tape).Run(pinned);
}

}  // namespace thimble
