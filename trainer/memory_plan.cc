#include "trainer/memory_plan.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "ops/scratch_buffer.h"
#include "trainer/first_fit.h"

namespace thimble {
namespace {

// The last step that reads or writes each value; one past the end for values read after the run.
std::vector<int32_t> LastUses(const Tape& tape, const std::vector<ValueId>& pinned) {
  std::vector<int32_t> last(tape.values().size(), -1);
  const int32_t steps = static_cast<int32_t>(tape.steps().size());
  for (int32_t s = 0; s < steps; ++s) {
    for (ValueId id : tape.steps()[s].inputs) last[id] = s;
    for (ValueId id : tape.steps()[s].outputs) last[id] = std::max(last[id], s);
  }
  for (ValueId id : pinned) last[id] = steps;
  return last;
}

// One buffer a value, unless an in-place step hands an input's buffer on to its output.
void AssignBuffers(const Tape& tape, const std::vector<int32_t>& last, Placement tier, MemoryPlan* plan) {
  plan->buffer_of_value.assign(tape.values().size(), -1);
  plan->scratch_of_step.assign(tape.steps().size(), -1);
  const int32_t steps = static_cast<int32_t>(tape.steps().size());
  for (int32_t s = 0; s < steps; ++s) {
    const Step& step = tape.steps()[s];
    for (const auto& [output, input] : step.in_place) {
      const ValueId out = step.outputs[output];
      const ValueId in = step.inputs[input];
      const int32_t buffer = plan->buffer_of_value[in];
      if (buffer < 0 || plan->buffer_of_value[out] >= 0 || last[in] != s) continue;
      const bool taken = std::any_of(step.outputs.begin(), step.outputs.end(),
                                     [&](ValueId id) { return plan->buffer_of_value[id] == buffer; });
      if (taken) continue;  // already handed on to another output of this step
      if (plan->buffers[buffer].bytes != Aligned(tape.value(out).bytes())) continue;
      if (std::count(step.inputs.begin(), step.inputs.end(), in) > 1) continue;
      plan->buffer_of_value[out] = buffer;
      plan->buffers[buffer].last_step = std::min(last[out], steps - 1);
    }
    for (ValueId out : step.outputs) {
      if (plan->buffer_of_value[out] >= 0 || tape.value(out).placement != tier) continue;
      plan->buffer_of_value[out] = static_cast<int32_t>(plan->buffers.size());
      plan->buffers.push_back(
          {s, std::min(last[out], steps - 1), Aligned(tape.value(out).bytes()), 0, tape.value(out).name, false});
    }
    if (step.scratch_bytes > 0 && tier == Placement::kActivation) {
      plan->scratch_of_step[s] = static_cast<int32_t>(plan->buffers.size());
      plan->buffers.push_back({s, s, Aligned(step.scratch_bytes), 0, std::string(step.op) + " scratch", true});
    }
  }
}

void FindPeak(const Tape& tape, MemoryPlan* plan) {
  plan->live_bytes.assign(tape.steps().size() + 1, 0);
  for (const PlannedBuffer& buffer : plan->buffers) {
    plan->live_bytes[buffer.first_step] += buffer.bytes;
    plan->live_bytes[buffer.last_step + 1] -= buffer.bytes;
  }
  std::partial_sum(plan->live_bytes.begin(), plan->live_bytes.end(), plan->live_bytes.begin());
  plan->live_bytes.pop_back();
  if (plan->live_bytes.empty()) return;
  const auto peak = std::max_element(plan->live_bytes.begin(), plan->live_bytes.end());
  plan->peak_step = static_cast<int32_t>(peak - plan->live_bytes.begin());
  plan->lower_bound_bytes = *peak;
  for (const PlannedBuffer& buffer : plan->AliveAtPeak()) {
    (buffer.scratch ? plan->scratch_bytes_at_peak : plan->activation_bytes_at_peak) += buffer.bytes;
  }
}

// Of tapes with so many buffers, a placement this close to the bound is good enough: another order takes seconds.
constexpr size_t kManyBuffers = 20000;
constexpr double kCloseToBound = 1.005;

// Places all buffers in several orders and keeps the smallest arena.
void PlaceBuffers(MemoryPlan* plan) {
  const std::vector<PlannedBuffer>& buffers = plan->buffers;
  std::vector<LivingBlock> blocks;
  blocks.reserve(buffers.size());
  for (const PlannedBuffer& buffer : buffers) blocks.push_back({buffer.first_step, buffer.last_step, buffer.bytes});
  const auto length = [](const LivingBlock& b) { return int64_t{1} + b.last_step - b.first_step; };
  const auto area = [&](const LivingBlock& b) { return static_cast<double>(b.bytes) * static_cast<double>(length(b)); };
  std::vector<int32_t> order(buffers.size());
  std::vector<int64_t> offsets;
  plan->peak_bytes = std::numeric_limits<int64_t>::max();
  // The largest key first; equal ones in the order of the tape.
  const auto try_order = [&](const auto& key) {
    const double most =
        static_cast<double>(plan->lower_bound_bytes) * (buffers.size() < kManyBuffers ? 1 : kCloseToBound);
    if (static_cast<double>(plan->peak_bytes) <= most) return;
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return key(blocks[a]) > key(blocks[b]); });
    const int64_t size = PlaceFirstFit(blocks, order, &offsets, plan->peak_bytes);
    if (size >= plan->peak_bytes) return;
    plan->peak_bytes = size;
    for (size_t i = 0; i < offsets.size(); ++i) plan->buffers[i].offset = offsets[i];
  };
  try_order([](const LivingBlock& b) { return b.bytes; });
  try_order(length);
  try_order(area);
  try_order([](const LivingBlock& b) { return -b.first_step; });
}

}  // namespace

std::vector<PlannedBuffer> MemoryPlan::AliveAtPeak() const {
  std::vector<PlannedBuffer> alive;
  for (const PlannedBuffer& buffer : buffers) {
    if (buffer.first_step <= peak_step && peak_step <= buffer.last_step) alive.push_back(buffer);
  }
  std::stable_sort(alive.begin(), alive.end(),
                   [](const PlannedBuffer& a, const PlannedBuffer& b) { return a.bytes > b.bytes; });
  return alive;
}

MemoryPlan PlanMemory(const Tape& tape, const std::vector<ValueId>& pinned, Placement tier) {
  MemoryPlan plan;
  AssignBuffers(tape, LastUses(tape, pinned), tier, &plan);
  FindPeak(tape, &plan);
  PlaceBuffers(&plan);
  return plan;
}

TierPlans PlanTiers(const Tape& tape, const std::vector<ValueId>& pinned) {
  return {PlanMemory(tape, pinned), PlanMemory(tape, {}, Placement::kHost), PlanMemory(tape, {}, Placement::kDisk)};
}

}  // namespace thimble
