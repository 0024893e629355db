#include "trainer/backward.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "ops/check.h"
#include "ops/elementwise.h"

namespace thimble {
namespace {

Placement TierOf(SaveAction action) { return action == SaveAction::kOffloadHost ? Placement::kHost : Placement::kDisk; }

}  // namespace

void Backward::Run() {
  const int32_t count = static_cast<int32_t>(tape_.steps().size());
  gradients_.assign(tape_.values().size(), kNoValue);
  copies_.assign(tape_.values().size(), kNoValue);
  compressed_.assign(tape_.values().size(), kNoValue);
  for (const Step& step : tape_.steps()) {
    for (ValueId id : step.outputs) {
      if (tape_.value(id).kind != ValueKind::kBoundary) continue;
      boundaries_.resize(std::max<size_t>(boundaries_.size(), step.layer + 1));
      boundaries_[step.layer].push_back(id);
    }
  }
  for (int32_t s = count - 1; s >= 0; --s) {
    const Step step = tape_.steps()[s];  // a copy: appending moves the list
    if (!step.backward) continue;
    bool needed = false;
    for (ValueId id : step.outputs) needed = needed || Needs(id);
    if (!needed) continue;
    tape_.SetLayer(step.layer);
    step.backward(*this, step);
  }
  tape_.SetLayer(-1);
  PlaceCompressions();
  PlaceTransfers(puts_, &tape_);
}

ValueId Backward::Saved(ValueId id) {
  const Value& value = tape_.value(id);
  if (value.placement != Placement::kActivation) return id;
  const SaveAction action = plan_.ActionOf(value);
  const bool compressed = action != SaveAction::kRecompute && plan_.CompressionOf(value) != Compression::kNone;
  if (action == SaveAction::kKeep && !compressed) return id;
  if (copies_[id] != kNoValue) return copies_[id];
  if (compressed) return Decompressed(id, action);
  if (action == SaveAction::kRecompute && value.kind == ValueKind::kBoundary) {
    RecomputeBoundaries(value.layer);
    return copies_[id];
  }
  if (action == SaveAction::kRecompute) return Recompute(id);
  const ValueId copy = Load(id, TierOf(action));
  Remember(id, copy);
  return copy;
}

// Read from the value's compressed form, which waits in its place.
ValueId Backward::Decompressed(ValueId id, SaveAction action) {
  const Value old = tape_.value(id);
  const Compression compression = plan_.CompressionOf(old);
  if (compressed_[id] == kNoValue) {
    compressed_[id] = tape_.Compressed(id, CompressedWords(compression, old.cols));
  }
  const ValueId packed = action == SaveAction::kKeep ? compressed_[id] : Load(compressed_[id], TierOf(action));
  const ValueId fresh = tape_.Activation(absl::StrCat(old.name, "'"), old.rows, old.cols);
  Remember(id, fresh);
  Step step;
  step.op = "decompress";
  step.inputs = {packed};
  step.outputs = {fresh};
  step.run = [compression](const StepContext& c) { Decompress(compression, c.In(0), c.Out(0)); };
  tape_.Append(std::move(step));
  return fresh;
}

// A step behind the producer of every value that was asked for in its compressed form.
void Backward::PlaceCompressions() {
  if (std::all_of(compressed_.begin(), compressed_.end(), [](ValueId id) { return id == kNoValue; })) return;
  std::vector<Step> steps;
  for (Step& old : tape_.TakeSteps()) {
    const Step& step = steps.emplace_back(std::move(old));
    const int32_t layer = step.layer;
    for (ValueId id : std::vector<ValueId>(step.outputs)) {
      if (static_cast<size_t>(id) >= compressed_.size() || compressed_[id] == kNoValue) continue;
      Step compress;
      compress.op = "compress";
      compress.inputs = {id};
      compress.outputs = {compressed_[id]};
      compress.layer = layer;
      compress.run = [compression = plan_.CompressionOf(tape_.value(id))](const StepContext& c) {
        Compress(compression, c.In(0), c.Out(0));
      };
      steps.push_back(std::move(compress));
    }
  }
  tape_.ReplaceSteps(std::move(steps));
}

void Backward::Remember(ValueId value, ValueId copy) {
  copies_[value] = copy;
  remembered_.push_back(value);
}

ValueId Backward::Recompute(ValueId id) {
  const int32_t layer = tape_.layer();
  Step again = tape_.steps()[tape_.value(id).producer];
  for (ValueId& input : again.inputs) input = Saved(input);
  tape_.SetLayer(tape_.value(id).layer);
  for (ValueId& output : again.outputs) {
    const Value old = tape_.value(output);
    const ValueId fresh = tape_.Activation(absl::StrCat(old.name, "'"), old.rows, old.cols);
    Remember(output, fresh);
    output = fresh;
  }
  again.backward = nullptr;
  tape_.Append(std::move(again));
  tape_.SetLayer(layer);
  return copies_[id];
}

// All tiles of a layer's result at once: what lies before them is computed for all of them.
void Backward::RecomputeBoundaries(int32_t layer) {
  const size_t before = remembered_.size();
  for (ValueId id : boundaries_[layer]) {
    if (copies_[id] == kNoValue) Recompute(id);
  }
  // On the way from an earlier boundary, only boundaries are remembered: what lies inside the layers between would
  // otherwise live until their own gradient steps.
  std::vector<ValueId> kept(remembered_.begin(), remembered_.begin() + static_cast<ptrdiff_t>(before));
  for (size_t i = before; i < remembered_.size(); ++i) {
    const ValueId value = remembered_[i];
    if (tape_.value(value).kind == ValueKind::kBoundary) {
      kept.push_back(value);
    } else {
      copies_[value] = kNoValue;
    }
  }
  remembered_ = std::move(kept);
}

ValueId Backward::Load(ValueId id, Placement tier) {
  slots_.resize(tape_.values().size(), kNoValue);
  if (slots_[id] == kNoValue) {
    slots_[id] = tape_.Slot(id, tier);
    puts_.push_back({id, slots_[id]});
  }
  const Value old = tape_.value(id);
  const ValueId fresh = tape_.Activation(absl::StrCat(old.name, "'"), old.rows, old.cols);
  Step get;
  get.op = "get";
  get.transfer = TransferKind::kGet;
  get.inputs = {slots_[id]};
  get.outputs = {fresh};
  tape_.Append(std::move(get));
  Step wait;
  wait.op = "wait";
  wait.transfer = TransferKind::kWait;
  wait.inputs = {fresh, slots_[id]};
  tape_.Append(std::move(wait));
  return fresh;
}

ValueId Backward::Gradient(ValueId value) const {
  return static_cast<size_t>(value) < gradients_.size() ? gradients_[value] : kNoValue;
}

void Backward::SetGradient(ValueId value, ValueId gradient) { gradients_[value] = gradient; }

ValueId Backward::NewGradient(ValueId value) {
  const Value of = tape_.value(value);
  return tape_.Activation(absl::StrCat("d", of.name), of.rows, of.cols);
}

void Backward::AddGradient(ValueId value, ValueId contribution) {
  if (!Needs(value)) return;
  const ValueId so_far = Gradient(value);
  if (so_far == kNoValue) {
    SetGradient(value, contribution);
    return;
  }
  const ValueId sum = NewGradient(value);
  Step step;
  step.op = "add";
  step.inputs = {so_far, contribution};
  step.outputs = {sum};
  step.in_place = {{0, 1}, {0, 0}};
  step.run = [](const StepContext& c) { Add(c.In(0), c.In(1), c.Out(0)); };
  tape_.Append(std::move(step));
  SetGradient(value, sum);
}

ValueId Backward::ParameterGradient(ValueId parameter) {
  const Value value = tape_.value(parameter);
  CHECK(value.placement == Placement::kStore && value.needs_gradient) << value.name;
  return tape_.Persistent(tape_.store().entry(value.store).gradient);
}

}  // namespace thimble
