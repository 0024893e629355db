// What becomes of the values that backward needs, layer by layer. None of the choices but compression changes a bit of
// the gradients.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "ops/compress.h"
#include "trainer/tape.h"

namespace thimble {

// A transfer of less, statistics of rows and the like, would cost more than it frees.
inline constexpr int64_t kSmallestTransferBytes = 4096;

enum class SaveAction : uint8_t {
  kKeep,         // it stays in the arena until its gradient step
  kRecompute,    // computed again from values that are saved; a boundary: from an earlier boundary
  kOffloadHost,  // copied to host memory behind its producer, and back ahead of its gradient step
  kOffloadDisk,  // the same by way of the spill file
};
// "keep", "recompute", "offload_host", "offload_disk"
std::string_view NameOf(SaveAction action);

// One choice for each kind of value (ValueKind).
struct LayerSavePlan {
  SaveAction inner = SaveAction::kKeep;
  SaveAction boundary = SaveAction::kKeep;
  SaveAction attention = inner;
  SaveAction elementwise = inner;
  SaveAction Of(ValueKind kind) const;
  bool operator==(const LayerSavePlan&) const = default;
};

// The usual plans, one choice for all layers.
enum class SavePolicy : uint8_t {
  kKeep,
  kRecompute,  // the boundaries are kept, all else is computed again
  kOffloadHost,
  kOffloadDisk,
};

class SavePlan {
 public:
  SavePlan() = default;
  SavePlan(SavePolicy policy);  // NOLINT(google-explicit-constructor): a policy is a plan
  explicit SavePlan(LayerSavePlan all) : all_(all) {}

  const LayerSavePlan& layer(int64_t index) const;
  void SetLayer(int64_t index, LayerSavePlan plan);
  // Values outside of layers and values that are not worth a transfer are kept.
  SaveAction ActionOf(const Value& value) const;
  bool UsesTier(SaveAction action) const;
  // In which form saved values of layers wait. What is computed again starts from the decompressed ones.
  void SetCompression(Compression compression) { compression_ = compression; }
  Compression compression() const { return compression_; }
  Compression CompressionOf(const Value& value) const;
  // Offloaded values are kept instead: for tapes whose idle values move by themselves (idle_values.h).
  SavePlan WithoutOffload() const;
  bool operator==(const SavePlan& other) const = default;
  // "recompute", or "0-3 keep; 4-31 recompute/offload_host attention=keep": inner, then boundary where it differs from
  // keep, then the kinds that differ from inner, as in memory.layers; ", in bf16" behind it with compression.
  std::string Text(int64_t num_layers) const;

 private:
  std::string LayersText(int64_t num_layers) const;

  LayerSavePlan all_;
  Compression compression_ = Compression::kNone;
  std::vector<LayerSavePlan> layers_;  // those set one by one; shorter than the model where the rest is as all_
};

}  // namespace thimble
