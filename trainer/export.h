// What leaves a run: a merged Hugging Face folder or a PEFT adapter folder, and the measure of what the export lost.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "data/model_folder.h"
#include "data/packing.h"
#include "trainer/decoder.h"
#include "trainer/engine.h"
#include "trainer/store.h"

namespace thimble {

struct ExportOptions {
  TensorDType dtype = TensorDType::kBF16;  // kBF16, kF16 or kF32
  bool packed = false;                     // ternary layers as codes and scale instead of masters
  int64_t max_shard_bytes = kDefaultMaxShardBytes;
  bool exact_linears = false;  // linear layers of the decoder in f32 all the same: they are quantised from that
  double max_kl = 0.05;        // nats, mean over held-out tokens
  double min_agreement = 0.9;  // share of equal most likely tokens
};

// Where the folder's other files come from.
struct ExportSource {
  const ModelFolder* base = nullptr;  // null: trained from scratch
  std::string base_path;              // base_model_name_or_path of an adapter
  std::string tokenizer_folder;       // files carried along when there is no base
};

// Writes W + scale * B A of every linear layer (DoRA: scaled rows), decoded from the base as it was trained, 4-bit
// included, added in f32 and rounded once; all other weights as they are. Tied embeddings stay tied. Ternary layers as
// masters, or packed four values a byte with a weight_scale, as microsoft/bitnet-b1.58-2B-4T has them.
absl::Status ExportMerged(const Decoder& decoder, const Store& store, const ExportSource& source,
                          const ExportOptions& options, const std::string& out);

// Writes adapter_config.json and adapter_model.safetensors (f32) as peft does.
absl::Status ExportPeft(const Decoder& decoder, const Store& store, const ExportSource& source, const std::string& out);

struct ExportQuality {
  double mean_kl = 0;  // KL(trained || exported), nats a token
  double max_kl = 0;
  double agreement = 0;     // share of tokens with the same most likely next token
  int64_t tokens = 0;       // compared
  double trained_loss = 0;  // nats a target, of the trained model and of the export over the same rows; 0 without any
  double loss = 0;
  int64_t targets = 0;
  int64_t planned_bytes = 0;   // of the device tier, for the model that was read back and the comparison
  int64_t measured_bytes = 0;  // taken
};
// Reads a merged folder back and compares it with the trained model over at most `max_batches` of `stream`. The linear
// layers of what is read back lie in a spill file in `spill_folder` (empty: TMPDIR or /tmp), not in memory.
absl::StatusOr<ExportQuality> CompareWithExport(Engine* trained, const std::string& folder, BatchStream* stream,
                                                int64_t max_batches, const std::string& spill_folder = "");

}  // namespace thimble
