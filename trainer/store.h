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
#include "ops/format.h"
#include "ops/view.h"

namespace thimble {

using StoreId = int32_t;

// What the plan's table calls the bytes of an entry.
enum class Category : uint8_t { kWeights, kParameters, kGradients, kMoments, kCache };
std::string_view NameOf(Category category);

struct StoreEntry {
  std::string name;  // as in the checkpoint: "model.layers.0.self_attn.q_proj.weight"
  int64_t rows = 0;
  int64_t cols = 0;
  Category category = Category::kWeights;
  int64_t bytes = 0;
  bool trainable = false;
  StoreId gradient = -1;  // of a trainable entry
  // What the optimiser keeps for a trainable entry, in its own order (trainer/optimizer_state.h).
  std::vector<StoreId> state;
  bool decay = false;  // weight decay applies (matrices, not norms or biases)
  int64_t codes = 0;   // of an entry of bytes: their number

  WeightView view;              // valid once memory is there
  std::shared_ptr<void> owner;  // keeps bound memory alive; null when it lies in the store's own block
};

class Store {
 public:
  Store() = default;
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  // An f32 entry [rows, cols], zero-filled by Allocate().
  StoreId Add(std::string name, int64_t rows, int64_t cols, Category category);
  // An entry whose memory comes later through Bind(); `bytes` counts codes and block statistics.
  StoreId AddBound(std::string name, int64_t rows, int64_t cols, Category category, Format format, int64_t bytes);
  // An entry of `count` bytes (8-bit codes), zero-filled by Allocate() and rounded up to whole floats: seen through
  // vector() it has ceil(count / 4) elements whose bits mean nothing as floats.
  StoreId AddCodes(std::string name, int64_t count, Category category);
  // Marks an f32 entry trainable and declares its gradient.
  void MakeTrainable(StoreId id, bool decay);

  // Adds an entry to what the optimiser keeps for a trainable one.
  void AttachState(StoreId trainable, StoreId state) { entries_[trainable].state.push_back(state); }

  void Bind(StoreId id, const WeightView& view, std::shared_ptr<void> owner);
  // Takes one zero-filled block for all f32 entries declared so far that have no memory yet.
  void Allocate();

  const StoreEntry& entry(StoreId id) const { return entries_[id]; }
  StoreId Find(std::string_view name) const;  // -1 when there is none
  int64_t size() const { return static_cast<int64_t>(entries_.size()); }
  Matrix matrix(StoreId id) const;  // f32 entries only
  Vector vector(StoreId id) const;
  int64_t BytesOf(Category category) const;
  int64_t TotalBytes() const;
  std::vector<StoreId> Trainable() const;  // in order of declaration

 private:
  std::vector<StoreEntry> entries_;
  absl::flat_hash_map<std::string, StoreId> by_name_;
  std::vector<std::pair<void*, int64_t>> blocks_;  // address, bytes
};

}  // namespace thimble
