// Persistent tensors: frozen weights, trainable parameters, their gradients and optimiser state, key/value caches.
// Entries are declared first, so that a plan can count bytes without a model; memory is taken once, by Allocate().
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ops/format.h"
#include "ops/memory_block.h"
#include "ops/view.h"
#include "trainer/tier.h"

namespace thimble {

using StoreId = int32_t;

// What the plan's table calls the bytes of an entry.
enum class Category : uint8_t { kWeights, kParameters, kServed, kGradients, kMoments, kCache };
std::string_view NameOf(Category category);

struct StoreEntry {
  std::string name;  // as in the checkpoint: "model.layers.0.self_attn.q_proj.weight"
  int64_t rows = 0;
  int64_t cols = 0;
  Category category = Category::kWeights;
  int64_t bytes = 0;
  bool trainable = false;
  StoreId gradient = -1;  // of a trainable entry, where the store has gradients
  // What the optimiser keeps for a trainable entry, in its own order (trainer/optimizer_state.h).
  std::vector<StoreId> state;
  bool decay = false;  // weight decay applies (matrices, not norms or biases)
  int64_t codes = 0;   // of an entry of bytes: their number

  // Of a streamed weight or an offloaded moment: where it lies in the weight or the state tier; -1: it stays in memory.
  // Its view says everything but the addresses.
  int64_t slot = -1;
  // A gradient that lives in the arena, from its first sum to its update.
  bool in_arena = false;
  WeightView view;                       // valid once memory is there
  std::shared_ptr<WeightReader> reader;  // of an entry streamed by rows
  std::shared_ptr<void> owner;           // keeps bound memory alive; null when it lies in the store's own block
};

// A weight that may be read, wherever its bytes lie.
struct ReadableWeight {
  WeightView view;
  std::shared_ptr<std::vector<char>> bytes;  // null when the store itself holds them
};

class Store {
 public:
  Store() = default;
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  // An f32 entry [rows, cols], zero-filled by Allocate().
  StoreId Add(std::string name, int64_t rows, int64_t cols, Category category);
  // An entry whose memory comes later through Bind(); `bytes` counts codes and block statistics.
  StoreId AddBound(std::string name, int64_t rows, int64_t cols, Category category, Format format, int64_t bytes);
  // An entry of `count` bytes (8-bit codes), zero-filled by Allocate() and rounded up to whole floats: seen through
  // vector() it has ceil(count / 4) elements whose bits mean nothing as floats.
  StoreId AddCodes(std::string name, int64_t count, Category category);
  // Marks an f32 entry trainable and declares its gradient, but for a store WithoutGradients().
  void MakeTrainable(StoreId id, bool decay);
  // Of a trained model that is only used: what is trainable has no gradient. Before the first MakeTrainable.
  void WithoutGradients() { gradients_ = false; }

  // Adds an entry to what the optimiser keeps for a trainable one.
  void AttachState(StoreId trainable, StoreId state) { entries_[trainable].state.push_back(state); }

  // Gives a frozen entry a place in the weight tier: the steps of a tape fetch it from there. Before Bind().
  void Stream(StoreId id);
  // The same for a table, not of codes with scales, of which steps read rows through the view's reader; never fetched
  // as a whole. Its bytes come by Bind(), or a piece at a time by WriteStreamed().
  void StreamRows(StoreId id);
  absl::Status WriteStreamed(StoreId id, int64_t offset, const void* from, int64_t bytes);
  // Bytes of the weight tier, which is to be set before the first streamed entry is bound.
  int64_t stream_bytes() const { return stream_bytes_; }
  // Which tier that is, for plans.
  bool streams_from_host() const { return streams_from_host_; }
  void StreamFromHost() { streams_from_host_ = true; }
  void SetWeightTier(std::unique_ptr<Tier> tier) { weight_tier_ = std::move(tier); }
  Tier* weight_tier() const { return weight_tier_.get(); }

  // Gives what an optimiser keeps a place in the state tier, which is to be set before it is used and whose bytes are
  // zero until they are written. The update fetches it from there and writes it back.
  void OffloadState(StoreId id);
  int64_t state_bytes() const { return state_bytes_; }
  bool state_on_host() const { return state_on_host_; }
  void StateToHost() { state_on_host_ = true; }
  void SetStateTier(std::unique_ptr<Tier> tier) { state_tier_ = std::move(tier); }
  Tier* state_tier() const { return state_tier_.get(); }
  // Bytes of an offloaded entry from `first` on.
  absl::Status ReadState(StoreId id, int64_t first, int64_t bytes, void* to) const;
  absl::Status WriteState(StoreId id, int64_t first, int64_t bytes, const void* from);

  // The tier that an entry with a slot lies in; null before it is set.
  Tier* TierOf(const StoreEntry& entry) const;
  bool OnHost(const StoreEntry& entry) const;
  // Bytes of both tiers that lie in host memory, or in spill files.
  int64_t TierBytes(bool host) const;

  // Lets all gradients live in the arena.
  void MoveGradientsToArena();

  // A streamed entry is copied to the weight tier and `owner` let go; Unavailable when that fails.
  absl::Status Bind(StoreId id, const WeightView& view, std::shared_ptr<void> owner);
  // Reads an entry back that is streamed as a whole; any other can be read as it is.
  absl::StatusOr<ReadableWeight> Read(StoreId id) const;

  // Takes one zero-filled block for all f32 entries declared so far that have no memory yet. ResourceExhausted where
  // the process may not have the address space.
  absl::Status TakeMemory();
  // The same where that is no user's business.
  void Allocate();

  // Whether weights changed since they were quantised as they will be served; at first they have.
  bool served_is_old() const { return served_is_old_; }
  void SetServedIsOld(bool old) { served_is_old_ = old; }

  const StoreEntry& entry(StoreId id) const { return entries_[id]; }
  StoreId Find(std::string_view name) const;  // -1 when there is none
  int64_t size() const { return static_cast<int64_t>(entries_.size()); }
  Matrix matrix(StoreId id) const;  // f32 entries only
  Vector vector(StoreId id) const;
  int64_t BytesOf(Category category) const;  // of those that lie in memory of the store
  // Between entries in the block of Allocate(), so that each begins on a multiple of 64.
  int64_t PaddingBytes() const;
  // All of that: what the store takes of the device tier.
  int64_t ResidentBytes() const;
  // What it has really taken so far: its blocks, and the parts of bound weights.
  int64_t HeldBytes() const;
  std::vector<StoreId> Trainable() const;  // in order of declaration

 private:
  std::vector<StoreEntry> entries_;
  absl::flat_hash_map<std::string, StoreId> by_name_;
  std::vector<MemoryBlock> blocks_;
  std::unique_ptr<Tier> weight_tier_;
  int64_t stream_bytes_ = 0;
  bool streams_from_host_ = false;
  bool gradients_ = true;
  bool served_is_old_ = true;
  std::unique_ptr<Tier> state_tier_;
  int64_t state_bytes_ = 0;
  bool state_on_host_ = false;
};

}  // namespace thimble
