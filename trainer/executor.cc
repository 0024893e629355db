#include "trainer/executor.h"

#include <algorithm>
#include <limits>

#include "ops/check.h"
#include "ops/scratch_buffer.h"

namespace thimble {

Executor::Executor(const Tape* tape, const TierPlans* plans, const Tiers& tiers)
    : tape_(tape), plans_(plans), tiers_(tiers), addresses_(tape->values().size(), nullptr) {
  CHECK(tiers_.device->ok());
  CHECK_GE(tiers_.device->bytes(), plans_->device.peak_bytes);
  CHECK_GE(tiers_.host == nullptr ? 0 : tiers_.host->bytes(), plans_->host.peak_bytes);
  CHECK_GE(tiers_.disk == nullptr ? 0 : tiers_.disk->bytes(), plans_->disk.peak_bytes);
  for (size_t id = 0; id < addresses_.size(); ++id) {
    const int32_t buffer = plans_->device.buffer_of_value[id];
    if (buffer >= 0) addresses_[id] = tiers_.device->data() + plans_->device.buffers[buffer].offset;
  }
  under_way_.resize(addresses_.size());
}

void Executor::Bind(ValueId input, const void* data) {
  CHECK(tape_->value(input).placement == Placement::kInput) << tape_->value(input).name;
  addresses_[input] = const_cast<void*>(data);  // inputs are read only through const views
}

absl::Status Executor::Run(RunScalars* scalars) {
  for (size_t id = 0; id < addresses_.size(); ++id) {
    const Value& value = tape_->values()[id];
    if (value.placement == Placement::kStore) {
      addresses_[id] = const_cast<void*>(tape_->store().entry(value.store).view.data);
    }
    bool outside = value.placement == Placement::kInput;
    if (value.placement == Placement::kStore) {
      const StoreEntry& entry = tape_->store().entry(value.store);
      outside = entry.slot < 0 && !entry.in_arena;
    }
    CHECK(!outside || addresses_[id] != nullptr || value.bytes() == 0) << "no memory bound for " << value.name;
  }
  const MemoryPlan& plan = plans_->device;
  Arena* arena = tiers_.device;
  const int32_t count = static_cast<int32_t>(tape_->steps().size());
  for (int32_t s = 0; s < count; ++s) {
    const Step& step = tape_->steps()[s];
    Scratch scratch;
    if (plan.scratch_of_step[s] >= 0) {
      const PlannedBuffer& buffer = plan.buffers[plan.scratch_of_step[s]];
      scratch = {arena->data() + buffer.offset, buffer.bytes};
      arena->Touch(buffer.offset + buffer.bytes);
    }
    for (ValueId id : step.outputs) {
      if (plan.buffer_of_value[id] < 0) continue;
      const PlannedBuffer& buffer = plan.buffers[plan.buffer_of_value[id]];
      arena->Touch(buffer.offset + buffer.bytes);
    }
    if (step.transfer == TransferKind::kNone) {
      step.run(StepContext(*tape_, step, addresses_, scratch, scalars));
    } else {
      RETURN_IF_ERROR(RunTransfer(step));
    }
#ifndef NDEBUG
    PoisonEnded(s);
#endif
  }
  // Rows that steps read of streamed tables.
  Tier* weights = tape_->store().weight_tier();
  return weights == nullptr ? absl::OkStatus() : weights->status();
}

Tier* Executor::TierOf(ValueId slot) const {
  return tape_->value(slot).placement == Placement::kHost ? tiers_.host : tiers_.disk;
}

const PlannedBuffer& Executor::BufferOf(ValueId slot) const {
  const MemoryPlan& plan = tape_->value(slot).placement == Placement::kHost ? plans_->host : plans_->disk;
  return plan.buffers[plan.buffer_of_value[slot]];
}

absl::Status Executor::RunTransfer(const Step& step) {
  const ValueId first = step.inputs[0];
  switch (step.transfer) {
    case TransferKind::kPut: {
      if (step.outputs.empty()) return PutBack(first);
      const ValueId slot = step.outputs[0];
      Tier* tier = TierOf(slot);
      const PlannedBuffer& buffer = BufferOf(slot);
      tier->Touch(buffer.offset + buffer.bytes);
      under_way_[slot] = {tier, tier->Put(addresses_[first], buffer.offset, tape_->value(slot).bytes())};
      return absl::OkStatus();
    }
    case TransferKind::kGet: {
      const ValueId to = step.outputs[0];
      const Value& value = tape_->value(to);
      if (tape_->value(first).placement == Placement::kStore) {
        const StoreEntry& entry = tape_->store().entry(value.store);
        Tier* tier = tape_->store().TierOf(entry);
        under_way_[to] = {tier, tier->Get(entry.slot + value.store_offset, addresses_[to], value.bytes())};
        return absl::OkStatus();
      }
      Tier* tier = TierOf(first);
      under_way_[to] = {tier, tier->Get(BufferOf(first).offset, addresses_[to], tape_->value(first).bytes())};
      return absl::OkStatus();
    }
    case TransferKind::kWait:
      return under_way_[first].first->Wait(under_way_[first].second);
    case TransferKind::kNone:
      break;
  }
  return absl::OkStatus();
}

absl::Status Executor::PutBack(ValueId fetched) {
  const Value& value = tape_->value(fetched);
  const StoreEntry& entry = tape_->store().entry(value.store);
  Tier* tier = tape_->store().TierOf(entry);
  const int64_t slot = entry.slot + value.store_offset;
  tier->Touch(Aligned(slot + value.bytes()));
  under_way_[fetched] = {tier, tier->Put(addresses_[fetched], slot, value.bytes())};
  return absl::OkStatus();
}

#ifndef NDEBUG
// Fills ranges whose life has ended with NaN, so that a step reading one cannot pass a test.
void Executor::PoisonEnded(int32_t step) {
  for (const PlannedBuffer& buffer : plans_->device.buffers) {
    if (buffer.last_step != step || step + 1 == static_cast<int32_t>(tape_->steps().size())) continue;
    float* begin = reinterpret_cast<float*>(tiers_.device->data() + buffer.offset);
    std::fill(begin, begin + buffer.bytes / 4, std::numeric_limits<float>::quiet_NaN());
  }
}
#endif

ConstMatrix Executor::Result(ValueId id) const {
  const Value& value = tape_->value(id);
  return ConstMatrix(static_cast<const float*>(addresses_[id]), value.rows, value.cols);
}

}  // namespace thimble
