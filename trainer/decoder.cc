#include "trainer/decoder.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "ops/check.h"
#include "ops/dora.h"
#include "ops/random.h"

namespace thimble {
namespace {

bool Contains(const std::vector<int64_t>& list, int64_t value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

bool IsTarget(const AdapterOptions& adapter, const std::string& short_name, int64_t layer) {
  if (adapter.rank == 0 || (!adapter.layers.empty() && !Contains(adapter.layers, layer))) return false;
  return std::find(adapter.targets.begin(), adapter.targets.end(), short_name) != adapter.targets.end();
}

// Declares weights with the same rules for all of them.
class Declarer {
 public:
  Declarer(Decoder* decoder, const StorageOf& storage, Store* store, bool train_embeddings)
      : decoder_(*decoder), storage_(storage), store_(*store), train_embeddings_(train_embeddings) {}

  StoreId Matrix(const std::string& name, int64_t rows, int64_t cols, bool linear) {
    if (decoder_.train_weights && (linear || train_embeddings_)) {
      const StoreId id = store_.Add(Entry(name), rows, cols, Category::kParameters);
      store_.MakeTrainable(id, /*decay=*/true);
      return id;
    }
    const WeightStorage storage = storage_(name, rows, cols, linear);
    return store_.AddBound(Entry(name), rows, cols, Category::kWeights, storage.format, storage.bytes);
  }

  StoreId Vector(const std::string& name, int64_t size) {
    const StoreId id = store_.Add(Entry(name), 1, size, Category::kWeights);
    if (decoder_.train_weights) store_.MakeTrainable(id, /*decay=*/false);
    return id;
  }

  LinearWeights Linear(int64_t layer, const std::string& group, const std::string& short_name, int64_t in, int64_t out,
                       bool bias) {
    LinearWeights linear;
    linear.name = absl::StrCat("model.layers.", layer, ".", group, short_name);
    linear.weight = Matrix(absl::StrCat(linear.name, ".weight"), out, in, /*linear=*/true);
    if (bias) linear.bias = Vector(absl::StrCat(linear.name, ".bias"), out);
    const AdapterOptions& adapter = decoder_.adapter;
    if (!IsTarget(adapter, short_name, layer)) return linear;
    const int64_t rank = adapter.RankOf(short_name);
    linear.lora_scale = adapter.ScaleOf(short_name);
    linear.lora_a = Trainable(absl::StrCat(linear.name, ".lora_A.weight"), rank, in, /*decay=*/true);
    linear.lora_b = Trainable(absl::StrCat(linear.name, ".lora_B.weight"), out, rank, /*decay=*/true);
    if (adapter.dora) {
      linear.magnitude = Trainable(absl::StrCat(linear.name, ".lora_magnitude_vector"), 1, out, /*decay=*/true);
    }
    linear.dropout_seed = adapter.seed + 0x9e3779b97f4a7c15u * (++modules_);
    return linear;
  }

 private:
  std::string Entry(const std::string& name) const { return absl::StrCat(decoder_.prefix, name); }

  StoreId Trainable(const std::string& name, int64_t rows, int64_t cols, bool decay) {
    const StoreId id = store_.Add(Entry(name), rows, cols, Category::kParameters);
    store_.MakeTrainable(id, decay);
    return id;
  }

  Decoder& decoder_;
  const StorageOf& storage_;
  Store& store_;
  bool train_embeddings_;
  uint64_t modules_ = 0;
};

LayerWeights DeclareLayer(const DecoderConfig& c, int64_t index, Declarer* declare) {
  const std::string name = absl::StrCat("model.layers.", index, ".");
  const int64_t q = c.num_heads * c.head_dim;
  const int64_t kv = c.num_kv_heads * c.head_dim;
  LayerWeights layer;
  layer.input_norm = declare->Vector(name + "input_layernorm.weight", c.hidden_dim);
  layer.q = declare->Linear(index, "self_attn.", "q_proj", c.hidden_dim, q, c.qkv_bias);
  layer.k = declare->Linear(index, "self_attn.", "k_proj", c.hidden_dim, kv, c.qkv_bias);
  layer.v = declare->Linear(index, "self_attn.", "v_proj", c.hidden_dim, kv, c.qkv_bias);
  layer.o = declare->Linear(index, "self_attn.", "o_proj", q, c.hidden_dim, c.o_bias);
  if (c.qk_norm) {
    layer.q_norm = declare->Vector(name + "self_attn.q_norm.weight", c.head_dim);
    layer.k_norm = declare->Vector(name + "self_attn.k_norm.weight", c.head_dim);
  }
  if (c.sub_norms) layer.attention_sub_norm = declare->Vector(name + "self_attn.attn_sub_norm.weight", q);
  layer.post_attention_norm = declare->Vector(name + "post_attention_layernorm.weight", c.hidden_dim);
  layer.gate = declare->Linear(index, "mlp.", "gate_proj", c.hidden_dim, c.intermediate_dim, c.mlp_bias);
  layer.up = declare->Linear(index, "mlp.", "up_proj", c.hidden_dim, c.intermediate_dim, c.mlp_bias);
  if (c.sub_norms) layer.mlp_sub_norm = declare->Vector(name + "mlp.ffn_sub_norm.weight", c.intermediate_dim);
  layer.down = declare->Linear(index, "mlp.", "down_proj", c.intermediate_dim, c.hidden_dim, c.mlp_bias);
  return layer;
}

}  // namespace

int64_t AdapterOptions::RankOf(const std::string& linear) const {
  const auto found = rank_pattern.find(linear);
  return found == rank_pattern.end() ? rank : found->second;
}

float AdapterOptions::ScaleOf(const std::string& linear) const {
  const auto found = alpha_pattern.find(linear);
  const double r = static_cast<double>(RankOf(linear));
  return static_cast<float>((found == alpha_pattern.end() ? alpha : found->second) / (rslora ? std::sqrt(r) : r));
}

const std::vector<std::string>& LinearNames() {
  static const auto* names =
      new std::vector<std::string>{"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
  return *names;
}

std::vector<LinearWeights*> Decoder::AdaptedLinears() {
  std::vector<LinearWeights*> adapted;
  for (LayerWeights& layer : layers) {
    for (LinearWeights* linear : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
      if (linear->lora_a >= 0) adapted.push_back(linear);
    }
  }
  return adapted;
}

absl::StatusOr<Decoder> DeclareDecoder(const DecoderConfig& config, const AdapterOptions& adapter, bool train_weights,
                                       Compute compute, const StorageOf& storage, Store* store, bool train_embeddings,
                                       std::string_view prefix) {
  for (const std::string& target : adapter.targets) {
    const auto& names = LinearNames();
    if (std::find(names.begin(), names.end(), target) == names.end()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "adapter target \"", target, "\" is no linear layer of this model; it has ", absl::StrJoin(names, ", ")));
    }
  }
  if (config.ternary && adapter.dora) {
    return absl::InvalidArgumentError(
        "adapter.type: dora scales the base's weights, and this model's are ternary (BitNet): set it to lora");
  }
  Decoder decoder;
  decoder.config = config;
  decoder.prefix = std::string(prefix);
  decoder.adapter = adapter;
  decoder.compute = compute;
  decoder.train_weights = train_weights;
  Declarer declare(&decoder, storage, store, train_embeddings);
  decoder.embedding =
      declare.Matrix("model.embed_tokens.weight", config.vocab_size, config.hidden_dim, /*linear=*/false);
  for (int64_t i = 0; i < config.num_layers; ++i) decoder.layers.push_back(DeclareLayer(config, i, &declare));
  decoder.final_norm = declare.Vector("model.norm.weight", config.hidden_dim);
  decoder.head = config.tie_embeddings
                     ? decoder.embedding
                     : declare.Matrix("lm_head.weight", config.vocab_size, config.hidden_dim, /*linear=*/false);
  return decoder;
}

void StreamLinearLayers(const Decoder& decoder, Store* store) {
  for (const LayerWeights& layer : decoder.layers) {
    for (const LinearWeights* linear : layer.Linears()) {
      if (!store->entry(linear->weight).trainable) store->Stream(linear->weight);
    }
  }
}

void StreamEmbeddings(const Decoder& decoder, Store* store) {
  for (StoreId table : {decoder.embedding, decoder.head}) {
    const StoreEntry& entry = store->entry(table);
    if (!entry.trainable && !HasScales(entry.view.format) && entry.slot < 0) store->StreamRows(table);
  }
}

absl::Status InitAdapters(const Decoder& decoder, Store* store) {
  std::vector<float> row;
  for (const LayerWeights& layer : decoder.layers) {
    for (const LinearWeights* linear : layer.Linears()) {
      if (linear->lora_a < 0) continue;
      const Matrix a = store->matrix(linear->lora_a);
      // Kaiming uniform as PEFT has it: the bound is 1 / sqrt(in).
      const float bound = static_cast<float>(1.0 / std::sqrt(static_cast<double>(a.cols)));
      const Vector values(a.data, a.rows * a.cols);
      if (decoder.adapter.gaussian_init) {
        RandomNormal(decoder.adapter.seed, linear->dropout_seed, 0, 0, 1.0f / static_cast<float>(a.rows), values);
      } else {
        RandomUniform(decoder.adapter.seed, linear->dropout_seed, 0, -bound, bound, values);
      }
      if (linear->magnitude < 0) continue;
      // B is zero: the norm of W + BA is that of W.
      ASSIGN_OR_RETURN(const ReadableWeight weight, store->Read(linear->weight));
      const WeightView& w = weight.view;
      row.resize(w.cols);
      for (int64_t o = 0; o < w.rows; ++o) {
        DecodeRow(w, o, 0, w.cols, row.data());
        double sum = 0;
        for (float value : row) sum += static_cast<double>(value) * value;
        store->matrix(linear->magnitude)(0, o) = static_cast<float>(std::sqrt(sum));
      }
    }
  }
  return absl::OkStatus();
}

void InitWeights(const Decoder& decoder, uint64_t seed, Store* store) {
  for (StoreId id : store->Trainable()) {
    const Vector values = store->vector(id);
    const StoreEntry& entry = store->entry(id);
    if (entry.decay) {
      RandomNormal(seed, static_cast<uint64_t>(id), 0, 0, decoder.config.init_std, values);
      continue;
    }
    const bool norm = entry.name.find("norm") != std::string::npos;
    std::fill(values.data, values.data + values.size, norm ? 1.0f : 0.0f);
  }
}

}  // namespace thimble
