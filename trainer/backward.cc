#include "trainer/backward.h"

#include "absl/strings/str_cat.h"
#include "ops/check.h"
#include "ops/elementwise.h"

namespace thimble {

void Backward::Run() {
  const int32_t count = static_cast<int32_t>(tape_.steps().size());
  gradients_.assign(tape_.values().size(), kNoValue);
  recomputed_.assign(tape_.values().size(), kNoValue);
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
}

ValueId Backward::Saved(ValueId id) {
  const Value value = tape_.value(id);
  if (value.placement != Placement::kActivation) return id;
  if (policy_ == SavePolicy::kKeep || value.layer < 0 || value.boundary) return id;
  if (recomputed_[id] != kNoValue) return recomputed_[id];
  Step again = tape_.steps()[value.producer];
  for (ValueId& input : again.inputs) input = Saved(input);
  for (ValueId& output : again.outputs) {
    const Value old = tape_.value(output);
    const ValueId fresh = tape_.Activation(absl::StrCat(old.name, "'"), old.rows, old.cols);
    recomputed_[output] = fresh;
    output = fresh;
  }
  again.backward = nullptr;
  tape_.Append(std::move(again));
  return recomputed_[id];
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
