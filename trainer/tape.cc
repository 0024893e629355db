#include "trainer/tape.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "ops/check.h"
#include "trainer/packed_weight.h"

namespace thimble {

ValueId Tape::Input(std::string name, int64_t rows, int64_t cols, DType dtype) {
  Value value;
  value.name = std::move(name);
  value.rows = rows;
  value.cols = cols;
  value.dtype = dtype;
  value.placement = Placement::kInput;
  values_.push_back(std::move(value));
  return static_cast<ValueId>(values_.size()) - 1;
}

ValueId Tape::Persistent(StoreId id) {
  CHECK_GE(id, 0);
  if (static_cast<size_t>(id) >= by_store_.size()) by_store_.resize(id + 1, kNoValue);
  if (by_store_[id] != kNoValue) return by_store_[id];
  const StoreEntry& entry = store_->entry(id);
  Value value;
  value.name = entry.name;
  value.rows = entry.rows;
  value.cols = entry.cols;
  value.placement = Placement::kStore;
  value.store = id;
  value.needs_gradient = entry.trainable;
  values_.push_back(std::move(value));
  by_store_[id] = static_cast<ValueId>(values_.size()) - 1;
  return by_store_[id];
}

ValueId Tape::Activation(std::string name, int64_t rows, int64_t cols) {
  Value value;
  value.name = std::move(name);
  value.rows = rows;
  value.cols = cols;
  value.layer = layer_;
  values_.push_back(std::move(value));
  return static_cast<ValueId>(values_.size()) - 1;
}

ValueId Tape::Slot(ValueId of, Placement tier) {
  CHECK(tier == Placement::kHost || tier == Placement::kDisk);
  Value slot;
  slot.name = absl::StrCat(values_[of].name, tier == Placement::kHost ? "@host" : "@disk");
  slot.rows = values_[of].rows;
  slot.cols = values_[of].cols;
  slot.placement = tier;
  slot.layer = values_[of].layer;
  values_.push_back(std::move(slot));
  return static_cast<ValueId>(values_.size()) - 1;
}

ValueId Tape::Compressed(ValueId of, int64_t words) {
  Value value;
  value.name = absl::StrCat(values_[of].name, ":");
  value.rows = values_[of].rows;
  value.cols = words;
  value.layer = values_[of].layer;
  value.kind = values_[of].kind;
  values_.push_back(std::move(value));
  return static_cast<ValueId>(values_.size()) - 1;
}

ValueId Tape::FetchedWeight(StoreId id) {
  const StoreEntry& entry = store_->entry(id);
  const ValueId fetched = Activation(absl::StrCat(entry.name, "~"), entry.rows, entry.cols);
  values_[fetched].store = id;
  values_[fetched].packed_bytes = PackedBytesBound(entry.bytes);
  return fetched;
}

ValueId Tape::FetchedState(StoreId id, int64_t first, int64_t count) {
  const ValueId fetched = Activation(absl::StrCat(store_->entry(id).name, "~"), 1, count);
  values_[fetched].store = id;
  values_[fetched].store_offset = first * int64_t{sizeof(float)};
  return fetched;
}

void Tape::ReplaceSteps(std::vector<Step> steps) {
  steps_ = std::move(steps);
  for (size_t s = 0; s < steps_.size(); ++s) {
    for (ValueId id : steps_[s].outputs) values_[id].producer = static_cast<int32_t>(s);
  }
}

void Tape::Append(Step step) {
  bool needs_gradient = false;
  for (ValueId id : step.inputs) {
    if (values_[id].needs_gradient) needs_gradient = true;
  }
  if (!step.backward) needs_gradient = false;
  for (ValueId id : step.outputs) {
    CHECK(values_[id].placement != Placement::kInput && values_[id].placement != Placement::kStore) << values_[id].name;
    CHECK_EQ(values_[id].producer, -1) << "written twice: " << values_[id].name;
    values_[id].producer = static_cast<int32_t>(steps_.size());
    values_[id].needs_gradient = needs_gradient;
  }
  step.layer = layer_;
  steps_.push_back(std::move(step));
}

std::string Tape::DebugString() const {
  const auto name = [this](std::string* out, ValueId id) { absl::StrAppend(out, values_[id].name); };
  std::string text;
  for (const Step& step : steps_) {
    absl::StrAppend(&text, std::string(step.op), " ", absl::StrJoin(step.inputs, ", ", name));
    if (!step.outputs.empty()) absl::StrAppend(&text, " -> ", absl::StrJoin(step.outputs, ", ", name));
    absl::StrAppend(&text, "\n");
  }
  return text;
}

ConstInts StepContext::Ints(int i) const {
  const Value& value = tape_.value(step_.inputs[i]);
  DCHECK(value.dtype == DType::kI32) << value.name;
  return ConstInts(static_cast<const int32_t*>(addresses_[step_.inputs[i]]), value.rows * value.cols);
}

WeightView StepContext::Weight(int i) const {
  const Value& value = tape_.value(step_.inputs[i]);
  if (value.placement == Placement::kStore) return tape_.store().entry(value.store).view;
  if (value.store >= 0) {
    return UnpackedView(tape_.store().entry(value.store).view, static_cast<const char*>(addresses_[step_.inputs[i]]));
  }
  return WeightView(static_cast<const float*>(addresses_[step_.inputs[i]]), value.rows, value.cols);
}

}  // namespace thimble
