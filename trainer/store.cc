#include "trainer/store.h"

#include "absl/strings/str_cat.h"
#include "ops/check.h"
#include "ops/scratch_buffer.h"
#include "trainer/packed_weight.h"

namespace thimble {
namespace {

bool IsResident(const StoreEntry& entry) { return entry.slot < 0 && !entry.in_arena; }
// Whether it lies in the block of Allocate(), once there is one.
bool InOwnBlock(const StoreEntry& entry) { return entry.view.format == Format::kF32 && IsResident(entry); }
// Rows of an entry in the weight tier. A failure is the tier's, which the executor asks for it.
class StreamedRows : public WeightReader {
 public:
  StreamedRows(const Store* store, int64_t slot) : store_(*store), slot_(slot) {}
  void Read(int64_t offset, int64_t bytes, void* to) const override {
    store_.weight_tier()->ReadNow(slot_ + offset, to, bytes);
  }
  int64_t Begin(int64_t offset, int64_t bytes, void* to) override {
    return store_.weight_tier()->Get(slot_ + offset, to, bytes);
  }
  void Wait(int64_t ticket) override { store_.weight_tier()->Wait(ticket).IgnoreError(); }

 private:
  const Store& store_;
  int64_t slot_;
};

}  // namespace

std::string_view NameOf(Category category) {
  switch (category) {
    case Category::kWeights:
      return "weights";
    case Category::kParameters:
      return "parameters";
    case Category::kServed:
      return "served weights";
    case Category::kGradients:
      return "gradients";
    case Category::kMoments:
      return "moments";
    case Category::kCache:
      return "cache";
  }
  return "";
}

StoreId Store::Add(std::string name, int64_t rows, int64_t cols, Category category) {
  return AddBound(std::move(name), rows, cols, category, Format::kF32, rows * cols * int64_t{sizeof(float)});
}

StoreId Store::AddBound(std::string name, int64_t rows, int64_t cols, Category category, Format format, int64_t bytes) {
  const StoreId id = static_cast<StoreId>(entries_.size());
  CHECK(by_name_.emplace(name, id).second) << "declared twice: " << name;
  StoreEntry entry;
  entry.name = std::move(name);
  entry.rows = rows;
  entry.cols = cols;
  entry.category = category;
  entry.bytes = bytes;
  entry.view.format = format;
  entry.view.rows = rows;
  entry.view.cols = cols;
  entries_.push_back(std::move(entry));
  return id;
}

StoreId Store::AddCodes(std::string name, int64_t count, Category category) {
  const StoreId id = Add(std::move(name), 1, (count + 3) / 4, category);
  entries_[id].codes = count;
  return id;
}

void Store::MakeTrainable(StoreId id, bool decay) {
  const std::string name = entries_[id].name;
  const int64_t rows = entries_[id].rows;
  const int64_t cols = entries_[id].cols;
  CHECK(entries_[id].view.format == Format::kF32) << name;
  const StoreId gradient =
      gradients_ ? Add(absl::StrCat(name, "#gradient"), rows, cols, Category::kGradients) : StoreId{-1};
  StoreEntry& entry = entries_[id];
  entry.trainable = true;
  entry.decay = decay;
  entry.category = Category::kParameters;
  entry.gradient = gradient;
}

void Store::Stream(StoreId id) {
  StoreEntry& entry = entries_[id];
  CHECK(!entry.trainable && entry.view.data == nullptr) << entry.name;
  entry.slot = Aligned(stream_bytes_);
  stream_bytes_ = entry.slot + PackedBytesBound(entry.bytes);
}

void Store::StreamRows(StoreId id) {
  CHECK(!HasScales(entries_[id].view.format)) << entries_[id].name;
  StoreEntry& entry = entries_[id];
  CHECK(!entry.trainable && entry.view.data == nullptr) << entry.name;
  entry.slot = Aligned(stream_bytes_);
  stream_bytes_ = entry.slot + entry.bytes;
  entry.reader = std::make_shared<StreamedRows>(this, entry.slot);
  entry.view.reader = entry.reader.get();
}

absl::Status Store::WriteStreamed(StoreId id, int64_t offset, const void* from, int64_t bytes) {
  return weight_tier_->Wait(weight_tier_->Put(from, entries_[id].slot + offset, bytes));
}

void Store::OffloadState(StoreId id) {
  StoreEntry& entry = entries_[id];
  CHECK(entry.category == Category::kMoments && entry.view.data == nullptr && entry.slot < 0) << entry.name;
  entry.slot = state_bytes_;
  state_bytes_ += Aligned(entry.bytes);
}

absl::Status Store::ReadState(StoreId id, int64_t first, int64_t bytes, void* to) const {
  return state_tier_->Wait(state_tier_->Get(entries_[id].slot + first, to, bytes));
}

absl::Status Store::WriteState(StoreId id, int64_t first, int64_t bytes, const void* from) {
  return state_tier_->Wait(state_tier_->Put(from, entries_[id].slot + first, bytes));
}

Tier* Store::TierOf(const StoreEntry& entry) const {
  return entry.category == Category::kMoments ? state_tier_.get() : weight_tier_.get();
}

bool Store::OnHost(const StoreEntry& entry) const {
  return entry.category == Category::kMoments ? state_on_host_ : streams_from_host_;
}

int64_t Store::TierBytes(bool host) const {
  return (streams_from_host_ == host ? stream_bytes_ : 0) + (state_on_host_ == host ? state_bytes_ : 0);
}

void Store::MoveGradientsToArena() {
  for (StoreEntry& entry : entries_) {
    if (entry.category != Category::kGradients) continue;
    CHECK(entry.view.data == nullptr) << entry.name;
    entry.in_arena = true;
  }
}

absl::Status Store::Bind(StoreId id, const WeightView& view, std::shared_ptr<void> owner) {
  StoreEntry& entry = entries_[id];
  CHECK_EQ(view.rows, entry.rows) << entry.name;
  CHECK_EQ(view.cols, entry.cols) << entry.name;
  if (entry.reader != nullptr) return WriteStreamed(id, 0, view.data, entry.bytes);
  entry.view = view;
  if (entry.slot < 0) {
    entry.owner = std::move(owner);
    return absl::OkStatus();
  }
  std::vector<char> packed(PackedBytesBound(entry.bytes));
  CHECK_LE(PackedBytes(view), static_cast<int64_t>(packed.size())) << entry.name;
  PackWeight(view, packed.data());
  return weight_tier_->Wait(weight_tier_->Put(packed.data(), entry.slot, static_cast<int64_t>(packed.size())));
}

absl::StatusOr<ReadableWeight> Store::Read(StoreId id) const {
  const StoreEntry& entry = entries_[id];
  if (entry.slot < 0 || entry.reader != nullptr) return ReadableWeight{entry.view, nullptr};
  auto bytes = std::make_shared<std::vector<char>>(PackedBytesBound(entry.bytes));
  const Tier::Ticket get = weight_tier_->Get(entry.slot, bytes->data(), static_cast<int64_t>(bytes->size()));
  RETURN_IF_ERROR(weight_tier_->Wait(get));
  return ReadableWeight{UnpackedView(entry.view, bytes->data()), bytes};
}

absl::Status Store::TakeMemory() {
  const auto wants_memory = [](const StoreEntry& entry) {
    return InOwnBlock(entry) && entry.view.data == nullptr && entry.bytes > 0;
  };
  int64_t bytes = 0;
  for (const StoreEntry& entry : entries_) {
    if (wants_memory(entry)) bytes += Aligned(entry.bytes);
  }
  if (bytes == 0) return absl::OkStatus();
  MemoryBlock block(bytes);
  if (!block.ok()) return NoAddressSpace("weights and what trains with them", bytes);
  char* next = block.data();
  blocks_.push_back(std::move(block));
  for (StoreEntry& entry : entries_) {
    if (!wants_memory(entry)) continue;
    entry.view = WeightView(reinterpret_cast<float*>(next), entry.rows, entry.cols);
    next += Aligned(entry.bytes);
  }
  return absl::OkStatus();
}

void Store::Allocate() {
  const absl::Status taken = TakeMemory();
  CHECK(taken.ok()) << taken;
}

StoreId Store::Find(std::string_view name) const {
  const auto it = by_name_.find(std::string(name));
  return it == by_name_.end() ? -1 : it->second;
}

Matrix Store::matrix(StoreId id) const {
  const StoreEntry& entry = entries_[id];
  DCHECK(entry.view.format == Format::kF32 && entry.view.data != nullptr) << entry.name;
  // Entries are mutable memory seen through a read-only weight view.
  return Matrix(static_cast<float*>(const_cast<void*>(entry.view.data)), entry.rows, entry.cols);
}

Vector Store::vector(StoreId id) const {
  const Matrix m = matrix(id);
  return Vector(m.data, m.rows * m.cols);
}

int64_t Store::BytesOf(Category category) const {
  int64_t bytes = 0;
  for (const StoreEntry& entry : entries_) {
    if (entry.category == category && IsResident(entry)) bytes += entry.bytes;
  }
  return bytes;
}

int64_t Store::PaddingBytes() const {
  int64_t bytes = 0;
  for (const StoreEntry& entry : entries_) bytes += InOwnBlock(entry) ? Aligned(entry.bytes) - entry.bytes : 0;
  return bytes;
}

int64_t Store::ResidentBytes() const {
  int64_t bytes = PaddingBytes();
  for (const StoreEntry& entry : entries_) bytes += IsResident(entry) ? entry.bytes : 0;
  return bytes;
}

int64_t Store::HeldBytes() const {
  int64_t bytes = 0;
  for (const MemoryBlock& block : blocks_) bytes += block.bytes();
  for (const StoreEntry& entry : entries_) {
    if (entry.owner != nullptr && entry.view.data != nullptr) bytes += PartBytes(entry.view);
  }
  return bytes;
}

std::vector<StoreId> Store::Trainable() const {
  std::vector<StoreId> ids;
  for (StoreId id = 0; id < static_cast<StoreId>(entries_.size()); ++id) {
    if (entries_[id].trainable) ids.push_back(id);
  }
  return ids;
}

}  // namespace thimble
