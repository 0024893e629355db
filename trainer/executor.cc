#include "trainer/executor.h"

#include <sys/mman.h>

#include <algorithm>
#include <limits>

#include "ops/check.h"

namespace thimble {

Arena::Arena(int64_t bytes) : bytes_(bytes) {
  if (bytes_ == 0) return;
  void* block = ::mmap(nullptr, static_cast<size_t>(bytes_), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(block != MAP_FAILED) << "no " << bytes_ << " bytes of address space";
  data_ = static_cast<char*>(block);
}

Arena::~Arena() {
  if (data_ != nullptr) ::munmap(data_, static_cast<size_t>(bytes_));
}

Executor::Executor(const Tape* tape, const MemoryPlan* plan, Arena* arena)
    : tape_(tape), plan_(plan), arena_(arena), addresses_(tape->values().size(), nullptr) {
  CHECK_GE(arena_->bytes(), plan_->peak_bytes);
  for (size_t id = 0; id < addresses_.size(); ++id) {
    const int32_t buffer = plan_->buffer_of_value[id];
    if (buffer >= 0) addresses_[id] = arena_->data() + plan_->buffers[buffer].offset;
  }
}

void Executor::Bind(ValueId input, const void* data) {
  CHECK(tape_->value(input).placement == Placement::kInput) << tape_->value(input).name;
  addresses_[input] = const_cast<void*>(data);  // inputs are read only through const views
}

void Executor::Run(RunScalars* scalars) {
  for (size_t id = 0; id < addresses_.size(); ++id) {
    const Value& value = tape_->values()[id];
    if (value.placement == Placement::kStore) {
      addresses_[id] = const_cast<void*>(tape_->store().entry(value.store).view.data);
    }
    CHECK(value.placement == Placement::kActivation || addresses_[id] != nullptr || value.bytes() == 0)
        << "no memory bound for " << value.name;
  }
  const int32_t count = static_cast<int32_t>(tape_->steps().size());
  for (int32_t s = 0; s < count; ++s) {
    const Step& step = tape_->steps()[s];
    Scratch scratch;
    if (plan_->scratch_of_step[s] >= 0) {
      const PlannedBuffer& buffer = plan_->buffers[plan_->scratch_of_step[s]];
      scratch = {arena_->data() + buffer.offset, buffer.bytes};
      arena_->Touch(buffer.offset + buffer.bytes);
    }
    for (ValueId id : step.outputs) {
      const PlannedBuffer& buffer = plan_->buffers[plan_->buffer_of_value[id]];
      arena_->Touch(buffer.offset + buffer.bytes);
    }
    step.run(StepContext(*tape_, step, addresses_, scratch, scalars));
#ifndef NDEBUG
    PoisonEnded(s);
#endif
  }
}

#ifndef NDEBUG
// Fills ranges whose life has ended with NaN, so that a step reading one cannot pass a test.
void Executor::PoisonEnded(int32_t step) {
  for (const PlannedBuffer& buffer : plan_->buffers) {
    if (buffer.last_step != step || step + 1 == static_cast<int32_t>(tape_->steps().size())) continue;
    float* begin = reinterpret_cast<float*>(arena_->data() + buffer.offset);
    std::fill(begin, begin + buffer.bytes / 4, std::numeric_limits<float>::quiet_NaN());
  }
}
#endif

ConstMatrix Executor::Result(ValueId id) const {
  const Value& value = tape_->value(id);
  return ConstMatrix(static_cast<const float*>(addresses_[id]), value.rows, value.cols);
}

}  // namespace thimble
