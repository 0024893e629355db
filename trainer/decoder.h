// A decoder-only language model: its weights as store entries and its forward pass recorded on a tape.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "ops/matmul.h"
#include "ops/round_tokens.h"
#include "trainer/decoder_config.h"
#include "trainer/store.h"

namespace thimble {

struct AdapterOptions {
  int64_t rank = 0;  // 0: no adapter
  double alpha = 16;
  double dropout = 0;
  bool rslora = false;  // scale alpha / sqrt(rank) instead of alpha / rank
  bool dora = false;
  bool gaussian_init = false;  // A ~ N(0, 1 / rank) instead of uniform
  // Last parts of the linear layers' names: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj.
  std::vector<std::string> targets;
  // Exceptions by name of linear layer, as peft's rank_pattern and alpha_pattern.
  std::map<std::string, int64_t> rank_pattern;
  std::map<std::string, double> alpha_pattern;
  std::vector<int64_t> layers;  // decoder layers that get adapters; empty: all
  uint64_t seed = 0;

  int64_t RankOf(const std::string& linear) const;
  float ScaleOf(const std::string& linear) const;
};

// Names of all linear layers of a decoder layer, in order.
const std::vector<std::string>& LinearNames();

struct LinearWeights {
  std::string name;  // "model.layers.0.self_attn.q_proj"
  StoreId weight = -1;
  StoreId bias = -1;
  StoreId lora_a = -1;
  StoreId lora_b = -1;
  StoreId magnitude = -1;
  StoreId served = -1;       // of training for a format, see served_weights.h
  int64_t served_group = 0;  // values that share a scale, where its scales lie apart
  float lora_scale = 0;
  uint64_t dropout_seed = 0;
};

struct LayerWeights {
  StoreId input_norm = -1;
  StoreId post_attention_norm = -1;
  StoreId q_norm = -1;
  StoreId k_norm = -1;
  StoreId attention_sub_norm = -1;
  StoreId mlp_sub_norm = -1;
  LinearWeights q, k, v, o, gate, up, down;
  std::vector<const LinearWeights*> Linears() const { return {&q, &k, &v, &o, &gate, &up, &down}; }
};

// Says how a weight will lie in memory.
struct WeightStorage {
  Format format = Format::kF32;
  int64_t bytes = 0;
};
using StorageOf = std::function<WeightStorage(const std::string& name, int64_t rows, int64_t cols, bool linear)>;

// What the entries of a teacher in the student's store begin with.
inline constexpr std::string_view kTeacherPrefix = "teacher.";

struct Decoder {
  DecoderConfig config;
  std::string prefix;  // of the names of its entries: empty, or kTeacherPrefix
  // Distillation: a frozen model of the same vocabulary in the same store; null: none.
  std::shared_ptr<const Decoder> teacher;
  AdapterOptions adapter;
  Compute compute = Compute::kF32;
  bool train_weights = false;
  StoreId embedding = -1;
  StoreId final_norm = -1;
  StoreId head = -1;  // the embedding when tied
  // As `served` of a linear layer; the same when tied.
  StoreId served_embedding = -1;
  StoreId served_head = -1;
  ActivationGrid activation_grid = ActivationGrid::kNone;  // of the inputs of linear layers with served weights
  std::vector<LayerWeights> layers;

  std::vector<LinearWeights*> AdaptedLinears();
  // The output layer that evaluation and generation compute with.
  StoreId EvaluatedHead() const { return served_head >= 0 ? served_head : head; }
};

// Declares every weight and adapter in `store`. With train_weights all weights are f32 and trainable (adapter.rank 0),
// but for embedding and output layer without train_embeddings; frozen ones are stored as `storage` says (norms and
// biases always f32), and only the adapter trains.
// `prefix` stands before every name. InvalidArgument when an adapter target is no linear layer of the model.
absl::StatusOr<Decoder> DeclareDecoder(const DecoderConfig& config, const AdapterOptions& adapter, bool train_weights,
                                       Compute compute, const StorageOf& storage, Store* store,
                                       bool train_embeddings = true, std::string_view prefix = "");

// Let frozen matrices lie in the store's weight tier instead of memory: linear layers are fetched, embedding and output
// layer (but for nf4 and fp4) read by rows.
void StreamLinearLayers(const Decoder& decoder, Store* store);
void StreamEmbeddings(const Decoder& decoder, Store* store);

// Fills adapters of an allocated store: A uniform in +-1/sqrt(in), B zero, DoRA magnitudes the weights' row norms.
// Unavailable when a streamed weight cannot be read.
absl::Status InitAdapters(const Decoder& decoder, Store* store);
// Fills all weights of a fresh model: N(0, init_std), biases 0, norms 1.
void InitWeights(const Decoder& decoder, uint64_t seed, Store* store);

}  // namespace thimble
