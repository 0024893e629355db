#include "trainer/export.h"

#include <algorithm>
#include <filesystem>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "data/file.h"
#include "data/quantize_folder.h"
#include "data/ternary_weight.h"
#include "nlohmann/json.hpp"
#include "ops/check.h"
#include "trainer/divergence.h"
#include "trainer/merged_weight.h"
#include "trainer/weight_loader.h"

namespace thimble {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

bool IsVectorName(const std::string& name) {
  return name.find("norm.weight") != std::string::npos || name.rfind(".bias") == name.size() - 5;
}

const char* DTypeText(TensorDType dtype) {
  if (dtype == TensorDType::kF16) return "float16";
  return dtype == TensorDType::kF32 ? "float32" : "bfloat16";
}

// The base's config.json with the new dtype and without what described its quantisation.
json MergedConfig(const Decoder& decoder, const ExportSource& source, const ExportOptions& options) {
  const char* dtype = DTypeText(options.dtype);
  json config = source.base == nullptr ? DecoderConfigJson(decoder.config, dtype) : source.base->config();
  config.erase("quantization_config");
  if (decoder.config.ternary) config["quantization_config"] = TernaryQuantizationJson(options.packed);
  if (source.base == nullptr) return config;
  config["tie_word_embeddings"] = decoder.config.tie_embeddings;
  if (config.contains("dtype")) config["dtype"] = dtype;
  if (config.contains("torch_dtype") || !config.contains("dtype")) config["torch_dtype"] = dtype;
  return config;
}

absl::Status CarryTokenizer(const std::string& folder, ModelFolderWriter* writer) {
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
                           "generation_config.json"}) {
    const fs::path path = fs::path(folder) / name;
    std::error_code error;
    if (!fs::exists(path, error)) continue;
    ASSIGN_OR_RETURN(const std::string content, ReadFile(path.string()));
    RETURN_IF_ERROR(writer->WriteFile(name, content));
  }
  return absl::OkStatus();
}

// What a weight becomes in the folder: one tensor, or the two of a packed layer.
void AddSpecs(const StoreEntry& entry, bool packed, TensorDType dtype, std::vector<TensorSpec>* specs) {
  if (packed) {
    specs->push_back({entry.name, TensorDType::kU8, {entry.rows / 4, entry.cols}});
    specs->push_back({TernaryScaleName(entry.name), TensorDType::kF32, {1}});
  } else if (IsVectorName(entry.name)) {
    specs->push_back({entry.name, dtype, {entry.cols}});
  } else {
    specs->push_back({entry.name, dtype, {entry.rows, entry.cols}});
  }
}

absl::Status AppendPacked(const MergedWeights& weights, StoreId id, const std::string& name,
                          ModelFolderWriter* writer) {
  ASSIGN_OR_RETURN(const QuantizedWeight ternary, weights.Ternary(id));
  const std::vector<uint8_t> bytes = PackForHuggingFace(ternary.View());
  RETURN_IF_ERROR(writer->Append(name, bytes.data(), static_cast<int64_t>(bytes.size())));
  return writer->AppendFloats(TernaryScaleName(name), ConstVector(ternary.absmax.data(), 1));
}

// Whether the options are for such a model.
absl::Status CheckTernary(const Decoder& decoder, const ExportOptions& options) {
  const DecoderConfig& c = decoder.config;
  RETURN_IF_ERROR(CheckMergeable(decoder));
  if (!options.packed) return absl::OkStatus();
  if (!c.ternary) return absl::InvalidArgumentError("only ternary models are packed; export this one as merged");
  if (c.hidden_dim % 4 == 0 && c.intermediate_dim % 4 == 0 && c.head_dim * c.num_kv_heads % 4 == 0) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      "packed layers hold four rows a byte, and a width of this model is no multiple of 4: export it as merged");
}

}  // namespace

absl::Status ExportMerged(const Decoder& decoder, const Store& store, const ExportSource& source,
                          const ExportOptions& options, const std::string& out) {
  RETURN_IF_ERROR(CheckTernary(decoder, options));
  const MergedWeights weights(decoder, store);
  const auto packed = [&](StoreId id) { return options.packed && weights.IsTernary(id); };
  std::vector<TensorSpec> specs;
  for (StoreId id : weights.ids()) {
    const StoreEntry& entry = store.entry(id);
    const bool exact = options.exact_linears && IsDecoderLinear(entry.name);
    AddSpecs(entry, packed(id), exact ? TensorDType::kF32 : options.dtype, &specs);
  }
  ASSIGN_OR_RETURN(
      const std::unique_ptr<ModelFolderWriter> writer,
      ModelFolderWriter::Create(out, MergedConfig(decoder, source, options), specs, options.max_shard_bytes));
  for (StoreId id : weights.ids()) {
    const std::string& name = store.entry(id).name;
    if (packed(id)) {
      RETURN_IF_ERROR(AppendPacked(weights, id, name, writer.get()));
      continue;
    }
    RETURN_IF_ERROR(weights.ForRows(id, [&](ConstVector rows) { return writer->AppendFloats(name, rows); }));
  }
  if (source.base != nullptr) {
    RETURN_IF_ERROR(writer->CarryFiles(source.base->path()));
  } else {
    RETURN_IF_ERROR(CarryTokenizer(source.tokenizer_folder, writer.get()));
  }
  return writer->Finish();
}

absl::Status ExportPeft(const Decoder& decoder, const Store& store, const ExportSource& source,
                        const std::string& out) {
  const AdapterOptions& adapter = decoder.adapter;
  if (adapter.rank == 0) return absl::InvalidArgumentError("a PEFT adapter needs a run that trained one");
  std::error_code error;
  fs::create_directories(out, error);
  if (error) return absl::PermissionDeniedError(absl::StrCat("cannot create ", out, ": ", error.message()));
  json config;
  config["peft_type"] = "LORA";
  config["task_type"] = "CAUSAL_LM";
  config["base_model_name_or_path"] = source.base_path;
  config["r"] = adapter.rank;
  config["lora_alpha"] = adapter.alpha;
  config["lora_dropout"] = adapter.dropout;
  config["use_rslora"] = adapter.rslora;
  config["use_dora"] = adapter.dora;
  config["target_modules"] = adapter.targets;
  config["rank_pattern"] = json(adapter.rank_pattern);
  config["alpha_pattern"] = json(adapter.alpha_pattern);
  if (adapter.rank_pattern.empty()) config["rank_pattern"] = json::object();
  if (adapter.alpha_pattern.empty()) config["alpha_pattern"] = json::object();
  if (!adapter.layers.empty()) config["layers_to_transform"] = adapter.layers;
  config["bias"] = "none";
  config["fan_in_fan_out"] = false;
  config["inference_mode"] = true;
  config["init_lora_weights"] = true;
  config["modules_to_save"] = nullptr;

  std::vector<TensorSpec> specs;
  const auto is_adapter = [](const StoreEntry& entry) {
    return entry.category == Category::kParameters && entry.name.find(".lora_") != std::string::npos;
  };
  const auto peft_name = [](const StoreEntry& entry) { return absl::StrCat("base_model.model.", entry.name); };
  for (StoreId id : store.Trainable()) {
    const StoreEntry& entry = store.entry(id);
    if (!is_adapter(entry)) continue;
    const bool vector = entry.name.find("lora_magnitude_vector") != std::string::npos;
    specs.push_back({peft_name(entry), TensorDType::kF32,
                     vector ? std::vector<int64_t>{entry.cols} : std::vector<int64_t>{entry.rows, entry.cols}});
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsWriter> writer,
                   SafetensorsWriter::Create(out + "/adapter_model.safetensors", specs));
  for (StoreId id : store.Trainable()) {
    if (!is_adapter(store.entry(id))) continue;
    RETURN_IF_ERROR(writer->AppendFloats(peft_name(store.entry(id)), store.vector(id)));
  }
  RETURN_IF_ERROR(writer->Finish());
  return WriteFileAtomically(out + "/adapter_config.json", config.dump(2) + "\n");
}

absl::StatusOr<ExportQuality> CompareWithExport(Engine* trained, const std::string& folder, BatchStream* stream,
                                                int64_t max_batches, const std::string& spill_folder) {
  ASSIGN_OR_RETURN(const std::unique_ptr<ModelFolder> exported, ModelFolder::Open(folder));
  ASSIGN_OR_RETURN(const DecoderConfig config, ReadDecoderConfig(*exported));
  Store store;
  const QuantizationOptions as_stored;
  ASSIGN_OR_RETURN(const Decoder decoder,
                   DeclareDecoder(config, AdapterOptions(), /*train_weights=*/false, trained->decoder().compute,
                                  StorageFor(*exported, as_stored), &store));
  // The second model streams from disk: the check must not need the memory of two.
  StreamLinearLayers(decoder, &store);
  StreamEmbeddings(decoder, &store);
  ASSIGN_OR_RETURN(std::unique_ptr<Tier> tier, MakeDiskTier(spill_folder, store.stream_bytes()));
  store.SetWeightTier(std::move(tier));
  store.Allocate();
  RETURN_IF_ERROR(LoadWeights(*exported, decoder, as_stored, &store));
  EngineOptions options;
  options.train = false;
  options.loss.compute = decoder.compute;
  options.max_tokens = stream->max_batch_tokens();
  options.sequence_tile = trained->options().sequence_tile;
  options.idle_tier = trained->options().idle_tier;
  options.spill_folder = spill_folder;
  Engine engine(&decoder, &store, options);

  RETURN_IF_ERROR(stream->Seek({}));
  int64_t batches = stream->batches_per_epoch();
  if (max_batches > 0) batches = std::min(batches, max_batches);
  Divergence divergence;
  ExportQuality quality;
  double trained_loss = 0, loss = 0;
  Batch batch;
  for (int64_t i = 0; i < batches; ++i) {
    RETURN_IF_ERROR(stream->Next(&batch));
    ConstMatrix trained_rows, exported_rows;
    trained_loss += trained->Evaluate(batch, nullptr, &trained_rows);
    loss += engine.Evaluate(batch, nullptr, &exported_rows);
    quality.targets += batch.num_targets;
    // Either may see the first tile of a long batch only.
    const int64_t tokens = std::min(trained_rows.rows, exported_rows.rows);
    const ConstMatrix p = trained_rows.Rows(0, tokens);
    const ConstMatrix q = exported_rows.Rows(0, tokens);
    RETURN_IF_ERROR(trained->status());
    RETURN_IF_ERROR(engine.status());
    divergence.Add(p, trained->store().entry(trained->decoder().EvaluatedHead()).view, q,
                   store.entry(decoder.EvaluatedHead()).view);
  }
  const auto targets = static_cast<double>(std::max<int64_t>(quality.targets, 1));
  quality.trained_loss = trained_loss / targets;
  quality.loss = loss / targets;
  quality.mean_kl = divergence.MeanKL();
  quality.max_kl = divergence.MaxKL();
  quality.agreement = divergence.Agreement();
  quality.tokens = divergence.tokens();
  quality.planned_bytes = store.ResidentBytes() + engine.arena_bytes() +
                          Divergence::ScratchBytes(stream->max_batch_tokens(),
                                                   trained->store().entry(trained->decoder().EvaluatedHead()).view,
                                                   store.entry(decoder.EvaluatedHead()).view);
  quality.measured_bytes = store.HeldBytes() + engine.arena_high_water_bytes() + divergence.held_bytes();
  return quality;
}

}  // namespace thimble
