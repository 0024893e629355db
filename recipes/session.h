// What commands work with: a model with its tokenizer, opened from a recipe, a Hugging Face folder or a run; and the
// data of a recipe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "data/model_folder.h"
#include "data/model_tokens.h"
#include "data/packing.h"
#include "data/row_encoder.h"
#include "data/token_cache.h"
#include "data/tokenizer.h"
#include "recipes/recipe.pb.h"
#include "trainer/decoder.h"
#include "trainer/export.h"
#include "trainer/store.h"
#include "trainer/weight_loader.h"

namespace thimble {

struct ModelSession {
  recipe::Recipe recipe;              // of a recipe or run; all defaults for a plain folder
  std::string path;                   // of the folder or run; empty for a fresh model
  std::unique_ptr<ModelFolder> base;  // null: trained from scratch, or only the configuration is there
  std::string bare_config_path;       // of a base without weights; empty otherwise
  nlohmann::json bare_config;
  DecoderConfig config;
  // Of distillation.teacher; null and empty without, and for models that are only used.
  std::unique_ptr<ModelFolder> teacher;
  std::string teacher_bare_config_path;
  nlohmann::json teacher_bare_config;
  DecoderConfig teacher_config;
  std::string tokenizer_folder;
  std::string tokenizer_file;
  std::unique_ptr<Tokenizer> tokenizer;  // null when it may be missing and is
  ModelTokens tokens;
  QuantizationOptions quantization;
  RowForm prompt_form =
      RowForm::kMessages;      // of a run: that of the rows it learned from, so that prompts are like them
  std::string compute_reason;  // why `compute: auto` chose what it did; empty when it was given
  Store store;
  Decoder decoder;

  // For export: where the files beside the weights come from.
  ExportSource Source() const;
};

// Opens tokenizer and configuration, chooses `compute` (which is then set in `recipe`), and declares all weights.
// Reads no tensor. With ModelParts::kConfiguration model.path may be a folder without safetensors or a config.json, and
// the tokenizer may be missing unless model.tokenizer names it: enough for a plan.
// kInference leaves out what only training needs: gradients (and moments, which PlanRun declares).
enum class ModelParts { kAll, kConfiguration, kInference };
absl::StatusOr<std::unique_ptr<ModelSession>> DeclareModel(const recipe::Recipe& recipe,
                                                           ModelParts parts = ModelParts::kAll);
// Declares the weights of `recipe`, the session's own or a variation of it on the same base, in `store`.
absl::StatusOr<Decoder> DeclareWeights(const ModelSession& model, const recipe::Recipe& recipe, Compute compute,
                                       Store* store);

// Allocates the store and fills it: base weights, fresh weights, the adapter's start.
absl::Status LoadModel(ModelSession* model);

// A model to evaluate, generate with or export: a Hugging Face folder, or a run folder with its latest checkpoint
// (its best one where `best`). Loaded.
absl::StatusOr<std::unique_ptr<ModelSession>> OpenModel(const std::string& path, bool best);
// Whether `path` is a run folder.
bool IsRunFolder(const std::string& path);

struct DataSession {
  std::unique_ptr<RowEncoder> encoder;
  TokenisedDataset train;
  TokenisedDataset validation;  // rows null without validation files
  std::unique_ptr<BatchStream> train_stream;
  std::unique_ptr<BatchStream> eval_stream;  // null without validation
  // Of everything that shapes the batches, for checkpoints.
  std::string fingerprint;
};

// Tokenises the recipe's files. The model outlives the result.
absl::StatusOr<DataSession> PrepareData(const ModelSession& model);
// Packs the same rows anew, as `recipe` says.
absl::Status Repack(const recipe::Recipe& recipe, DataSession* data);
// Tokens of the longest micro-batch, training or evaluation, of the same rows packed as `recipe` says.
absl::StatusOr<int64_t> LongestMicroBatch(const recipe::Recipe& recipe, const DataSession& data);
// The encoder alone, for prompts and for rows of other files.
absl::StatusOr<std::unique_ptr<RowEncoder>> MakeEncoder(const ModelSession& model);

}  // namespace thimble
