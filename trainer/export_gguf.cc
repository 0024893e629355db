#include "trainer/export_gguf.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "data/gguf_model.h"
#include "data/gguf_tokenizer_writer.h"
#include "data/gguf_writer.h"
#include "ops/check.h"
#include "trainer/merged_weight.h"
#include "trainer/served_weights.h"

namespace thimble {
namespace {

constexpr uint32_t kNoFileType = 0xffffffff;
constexpr char kRopeDivisors[] = "rope_freqs.weight";

constexpr GgufMix kMixes[] = {
    {"f32", TensorDType::kF32, TensorDType::kF32, false, 0},
    {"f16", TensorDType::kF16, TensorDType::kF16, false, 1},
    {"bf16", TensorDType::kBF16, TensorDType::kBF16, false, 32},
    {"q8_0", TensorDType::kQ8_0, TensorDType::kQ8_0, false, 7},
    {"q4_0", TensorDType::kQ4_0, TensorDType::kQ6K, false, 2},
    {"q4_1", TensorDType::kQ4_1, TensorDType::kQ6K, false, 3},
    {"q5_0", TensorDType::kQ5_0, TensorDType::kQ6K, false, 8},
    {"q5_1", TensorDType::kQ5_1, TensorDType::kQ6K, false, 9},
    {"q4_k_s", TensorDType::kQ4K, TensorDType::kQ6K, false, 14},
    {"q4_k_m", TensorDType::kQ4K, TensorDType::kQ6K, true, 15},
    {"q5_k_s", TensorDType::kQ5K, TensorDType::kQ6K, false, 16},
    {"q5_k_m", TensorDType::kQ5K, TensorDType::kQ6K, true, 17},
    {"q6_k", TensorDType::kQ6K, TensorDType::kQ6K, false, 18},
    {"tq1_0", TensorDType::kTQ1_0, TensorDType::kQ6K, false, 36},
    {"tq2_0", TensorDType::kTQ2_0, TensorDType::kQ6K, false, 37},
    {"mxfp4", TensorDType::kMXFP4, TensorDType::kQ8_0, false, kNoFileType},
    {"nvfp4", TensorDType::kNVFP4, TensorDType::kQ8_0, false, kNoFileType},
};

bool FitsRows(TensorDType type, int64_t cols) { return cols % SizeOf(type).elements == 0; }

// What llama-quantize takes for rows that are no multiple of 256; then F16.
TensorDType Fitting(TensorDType type, int64_t cols) {
  const auto fits = [cols](TensorDType t) { return FitsRows(t, cols); };
  if (fits(type)) return type;
  TensorDType smaller = TensorDType::kQ4_0;
  if (type == TensorDType::kQ4K) smaller = TensorDType::kQ5_0;
  if (type == TensorDType::kQ5K) smaller = TensorDType::kQ5_1;
  if (type == TensorDType::kQ6K) smaller = TensorDType::kQ8_0;
  return fits(smaller) ? smaller : TensorDType::kF16;
}

bool IsVectorName(const std::string& name) {
  return absl::StrContains(name, "norm.weight") || absl::EndsWith(name, ".bias");
}

bool IsLinear(const std::string& name) { return absl::EndsWith(name, "_proj.weight"); }

// "llama" for what its loader reads as it does Llama: Mistral too.
absl::StatusOr<std::string> ArchitectureOf(const DecoderConfig& config) {
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (config.windows[layer] == 0 || config.windows[layer] >= config.max_position) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "--format=gguf: layer ", layer, " sees a window of ", config.windows[layer], " tokens (sliding_window), which ",
        config.model_type, " has not in a GGUF file; export it as safetensors"));
  }
  if (config.sub_norms && !config.ternary) {
    return absl::InvalidArgumentError("--format=gguf: llama.cpp has BitNet's architecture for ternary models alone");
  }
  if (config.sub_norms && !config.tie_embeddings) {
    return absl::InvalidArgumentError(
        "--format=gguf: llama.cpp takes the embedding of a BitNet model for its output layer, and this model has its "
        "own (tie_word_embeddings false)");
  }
  if (config.mlp_bias) {
    return absl::InvalidArgumentError("--format=gguf: llama.cpp reads no biases of MLP layers (mlp_bias)");
  }
  return config.model_type == "mistral" ? "llama" : config.model_type;
}

absl::Status AddRope(const DecoderConfig& config, const std::string& arch, std::vector<GgufEntry>* entries) {
  entries->push_back(GgufFloat(arch + ".rope.freq_base", config.rope_theta));
  entries->push_back(GgufInteger(arch + ".rope.dimension_count", GgufType::kU32, config.head_dim));
  const RopeScaling& scaling = config.rope_scaling;
  if (scaling.type != RopeScaling::Type::kLinear && scaling.type != RopeScaling::Type::kYarn) return absl::OkStatus();
  const bool yarn = scaling.type == RopeScaling::Type::kYarn;
  entries->push_back(GgufString(arch + ".rope.scaling.type", yarn ? "yarn" : "linear"));
  entries->push_back(GgufFloat(arch + ".rope.scaling.factor", scaling.factor));
  if (yarn) {
    entries->push_back(
        GgufInteger(arch + ".rope.scaling.original_context_length", GgufType::kU32, scaling.original_max_position));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<GgufEntry>> ModelEntries(const DecoderConfig& config, const ExportSource& source,
                                                    const GgufMix& mix) {
  ASSIGN_OR_RETURN(const std::string arch, ArchitectureOf(config));
  const auto u32 = [](const std::string& key, int64_t value) { return GgufInteger(key, GgufType::kU32, value); };
  std::vector<GgufEntry> entries = {
      GgufString("general.architecture", arch),
      GgufString("general.type", "model"),
      u32("general.quantization_version", 2),
      u32(arch + ".context_length", config.max_position),
      u32(arch + ".embedding_length", config.hidden_dim),
      u32(arch + ".block_count", config.num_layers),
      u32(arch + ".feed_forward_length", config.intermediate_dim),
      u32(arch + ".attention.head_count", config.num_heads),
      u32(arch + ".attention.head_count_kv", config.num_kv_heads),
      u32(arch + ".attention.key_length", config.head_dim),
      u32(arch + ".attention.value_length", config.head_dim),
      u32(arch + ".vocab_size", config.vocab_size),
      GgufFloat(arch + ".attention.layer_norm_rms_epsilon", config.rms_norm_eps),
  };
  if (config.activation == GateActivation::kReluSquared) entries.push_back(GgufString(kGgufActivationKey, "relu2"));
  if (mix.file_type != kNoFileType) entries.push_back(u32("general.file_type", mix.file_type));
  RETURN_IF_ERROR(AddRope(config, arch, &entries));
  const std::string folder = source.base != nullptr ? source.base->path() : source.tokenizer_folder;
  ASSIGN_OR_RETURN(const std::vector<GgufEntry> tokenizer, GgufTokenizerEntries(folder, config.vocab_size));
  int64_t eos = -1;
  bool has_eot = false;
  for (const GgufEntry& entry : tokenizer) {
    if (entry.key == "tokenizer.ggml.eos_token_id") eos = entry.value.integers[0];
    has_eot = has_eot || entry.key == "tokenizer.ggml.eot_token_id";
    entries.push_back(entry);
  }
  // A second end, which chat models write, ends a turn.
  for (const int32_t id : config.eos_token_ids) {
    if (has_eot || id == eos) continue;
    entries.push_back(u32("tokenizer.ggml.eot_token_id", id));
    has_eot = true;
  }
  return entries;
}

// What each frequency is divided by, as Llama 3 scales them.
std::vector<float> RopeDivisors(const DecoderConfig& config) {
  const RopeScaling& s = config.rope_scaling;
  const double low = s.low_freq_factor, high = s.high_freq_factor, factor = s.factor;
  const double original = static_cast<double>(s.original_max_position);
  std::vector<float> divisors(static_cast<size_t>(config.head_dim / 2));
  for (size_t i = 0; i < divisors.size(); ++i) {
    const double exponent = 2 * static_cast<double>(i) / static_cast<double>(config.head_dim);
    const double wavelength = 2 * M_PI * std::pow(config.rope_theta, exponent);
    double divisor = factor;
    if (wavelength < original / high) {
      divisor = 1;
    } else if (wavelength <= original / low) {
      const double t = (original / wavelength - low) / (high - low);
      divisor = 1 / ((1 - t) / factor + t);
    }
    divisors[i] = static_cast<float>(divisor);
  }
  return divisors;
}

// Three values and a scale survive in these.
absl::Status CheckTernaryMix(const GgufMix& mix) {
  switch (mix.type) {
    case TensorDType::kF32:
    case TensorDType::kF16:
    case TensorDType::kBF16:
    case TensorDType::kQ8_0:
    case TensorDType::kTQ1_0:
    case TensorDType::kTQ2_0:
      return absl::OkStatus();
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("--dtype=", std::string(mix.name),
                       " would round ternary weights; expected tq2_0, tq1_0, q8_0, bf16, f16 or f32"));
  }
}

// `served`: the format that the weight was trained for; nullopt: the mix decides.
absl::StatusOr<GgufTensorSpec> SpecOf(const StoreEntry& entry, const DecoderConfig& config, const GgufMix& mix,
                                      bool paired, std::optional<Format> served) {
  const std::optional<std::string> name = GgufTensorName(entry.name);
  if (!name) return absl::InvalidArgumentError(absl::StrCat("--format=gguf: GGUF has no name for ", entry.name));
  GgufTensorSpec spec;
  spec.name = *name;
  if (IsVectorName(entry.name)) {
    spec.shape = {entry.cols};
  } else {
    spec.shape = {entry.rows, entry.cols};
    spec.dtype = served ? TensorDTypeOf(*served)
                        : GgufTensorType(mix, entry.name, config.num_layers, entry.cols, config.tie_embeddings);
    // Three values fit any type whose blocks fit the rows, but few exactly.
    if (config.ternary && IsLinear(entry.name) && !FitsRows(mix.type, entry.cols)) {
      spec.dtype = FitsRows(TensorDType::kQ8_0, entry.cols) ? TensorDType::kQ8_0 : TensorDType::kF16;
    }
  }
  const bool rotated = absl::StrContains(entry.name, ".q_proj.") || absl::StrContains(entry.name, ".k_proj.");
  if (paired && rotated) spec.head_rows = config.head_dim;
  return spec;
}

// The three values times the scale, as llama.cpp multiplies them; not the masters.
absl::Status AppendTernary(const MergedWeights& weights, StoreId id, const std::string& name, GgufWriter* writer) {
  ASSIGN_OR_RETURN(const QuantizedWeight ternary, weights.Ternary(id));
  std::vector<float> row(static_cast<size_t>(ternary.cols));
  for (int64_t r = 0; r < ternary.rows; ++r) {
    DecodeRow(ternary.View(), r, 0, ternary.cols, row.data());
    RETURN_IF_ERROR(writer->AppendFloats(name, ConstVector(row.data(), ternary.cols)));
  }
  return absl::OkStatus();
}

}  // namespace

const GgufMix* FindGgufMix(std::string_view name) {
  const auto found =
      std::find_if(std::begin(kMixes), std::end(kMixes), [&](const GgufMix& m) { return m.name == name; });
  return found == std::end(kMixes) ? nullptr : found;
}

std::vector<std::string> GgufMixNames() {
  std::vector<std::string> names;
  for (const GgufMix& mix : kMixes) names.emplace_back(mix.name);
  return names;
}

TensorDType GgufTensorType(const GgufMix& mix, const std::string& name, int64_t layers, int64_t cols, bool tied) {
  const bool embedding = absl::StrContains(name, "embed_tokens");
  if (absl::StartsWith(name, "lm_head") || (embedding && tied)) return Fitting(mix.more, cols);
  if (!mix.is_mix || embedding) return Fitting(mix.type, cols);
  const bool candidate = absl::StrContains(name, ".v_proj.") || absl::StrContains(name, ".down_proj.");
  int64_t layer = 0;
  const size_t digits = std::string("model.layers.").size();
  CHECK(absl::SimpleAtoi(name.substr(digits, name.find('.', digits) - digits), &layer)) << name;
  const bool more = layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
  return Fitting(candidate && more ? mix.more : mix.type, cols);
}

namespace {

// All that is known of a file before its tensors are read.
struct GgufLayout {
  std::vector<GgufEntry> entries;
  std::vector<GgufTensorSpec> specs;
  bool divided = false;  // the first tensor is kRopeDivisors
};

absl::StatusOr<GgufLayout> LayoutOf(const Decoder& decoder, const Store& store, const MergedWeights& weights,
                                    const ExportSource& source, const GgufMix& mix, bool as_served) {
  const DecoderConfig& config = decoder.config;
  GgufLayout layout;
  RETURN_IF_ERROR(CheckMergeable(decoder));
  if (config.ternary) RETURN_IF_ERROR(CheckTernaryMix(mix));
  ASSIGN_OR_RETURN(layout.entries, ModelEntries(config, source, mix));
  ASSIGN_OR_RETURN(const std::string arch, ArchitectureOf(config));
  layout.divided = config.rope_scaling.type == RopeScaling::Type::kLlama3;
  if (layout.divided) layout.specs.push_back({kRopeDivisors, TensorDType::kF32, {config.head_dim / 2}});
  for (StoreId id : weights.ids()) {
    std::optional<Format> served;
    if (as_served) {
      const StoreId trained_for = ServedOf(decoder, id);
      served = trained_for < 0 ? Format::kF16 : store.entry(trained_for).view.format;
    }
    ASSIGN_OR_RETURN(GgufTensorSpec spec, SpecOf(store.entry(id), config, mix, HasPairedRows(arch), served));
    layout.specs.push_back(std::move(spec));
  }
  return layout;
}

}  // namespace

absl::Status CheckGgufExport(const Decoder& decoder, const Store& store, const ExportSource& source,
                             const GgufMix& mix) {
  return LayoutOf(decoder, store, MergedWeights(decoder, store), source, mix, /*as_served=*/false).status();
}

absl::Status ExportGguf(const Decoder& decoder, const Store& store, const ExportSource& source, const GgufMix& mix,
                        const std::string& out, bool as_served) {
  const MergedWeights weights(decoder, store);
  ASSIGN_OR_RETURN(const GgufLayout layout, LayoutOf(decoder, store, weights, source, mix, as_served));
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufWriter> writer, GgufWriter::Create(out, layout.entries, layout.specs));
  if (layout.divided) {
    const std::vector<float> divisors = RopeDivisors(decoder.config);
    RETURN_IF_ERROR(
        writer->AppendFloats(kRopeDivisors, ConstVector(divisors.data(), static_cast<int64_t>(divisors.size()))));
  }
  for (StoreId id : weights.ids()) {
    const std::string name = GgufTensorName(store.entry(id).name).value();
    if (weights.IsTernary(id)) {
      RETURN_IF_ERROR(AppendTernary(weights, id, name, writer.get()));
      continue;
    }
    RETURN_IF_ERROR(weights.ForRows(id, [&](ConstVector rows) { return writer->AppendFloats(name, rows); }));
  }
  return writer->Finish();
}

namespace {

// A tensor of an adapter file and its values.
struct AdapterTensor {
  GgufTensorSpec spec;
  std::vector<float> values;
};

std::vector<AdapterTensor> AdapterTensors(const Decoder& decoder, const Store& store, bool paired) {
  std::vector<AdapterTensor> tensors;
  const float alpha = static_cast<float>(decoder.adapter.alpha);
  for (const LayerWeights& layer : decoder.layers) {
    for (const LinearWeights* linear : layer.Linears()) {
      if (linear->lora_a < 0) continue;
      const std::string name = GgufTensorName(linear->name + ".weight").value();
      const Matrix a = store.matrix(linear->lora_a), b = store.matrix(linear->lora_b);
      AdapterTensor low{{name + ".lora_a", TensorDType::kF32, {a.rows, a.cols}}, {}};
      low.values.assign(a.data, a.data + a.rows * a.cols);
      AdapterTensor high{{name + ".lora_b", TensorDType::kF32, {b.rows, b.cols}}, {}};
      high.values.assign(b.data, b.data + b.rows * b.cols);
      const bool rotated = absl::EndsWith(linear->name, ".q_proj") || absl::EndsWith(linear->name, ".k_proj");
      if (rotated && paired) high.spec.head_rows = decoder.config.head_dim;
      // llama.cpp scales by alpha / rank; whatever else a layer has (rsLoRA, a pattern) goes into B.
      const float applied = alpha / static_cast<float>(a.rows);
      if (applied != linear->lora_scale) {
        for (float& value : high.values) value *= linear->lora_scale / applied;
      }
      tensors.push_back(std::move(low));
      tensors.push_back(std::move(high));
    }
  }
  return tensors;
}

}  // namespace

absl::Status ExportGgufAdapter(const Decoder& decoder, const Store& store, const std::string& out) {
  const AdapterOptions& adapter = decoder.adapter;
  if (adapter.rank == 0) return absl::InvalidArgumentError("a GGUF adapter needs a run that trained one");
  if (adapter.dora) {
    return absl::InvalidArgumentError("--format=gguf_adapter: llama.cpp applies no DoRA; export the merged model");
  }
  ASSIGN_OR_RETURN(const std::string arch, ArchitectureOf(decoder.config));
  const std::vector<AdapterTensor> tensors = AdapterTensors(decoder, store, HasPairedRows(arch));
  std::vector<GgufTensorSpec> specs;
  specs.reserve(tensors.size());
  for (const AdapterTensor& tensor : tensors) specs.push_back(tensor.spec);
  const std::vector<GgufEntry> entries = {GgufString("general.type", "adapter"),
                                          GgufString("general.architecture", arch), GgufString("adapter.type", "lora"),
                                          GgufFloat("adapter.lora.alpha", static_cast<float>(adapter.alpha))};
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufWriter> writer, GgufWriter::Create(out, entries, specs));
  for (const AdapterTensor& tensor : tensors) {
    RETURN_IF_ERROR(writer->AppendFloats(
        tensor.spec.name, ConstVector(tensor.values.data(), static_cast<int64_t>(tensor.values.size()))));
  }
  return writer->Finish();
}

absl::Status CheckGgufAdapter(const Decoder& decoder, const Store& store, const std::string& path) {
  ASSIGN_OR_RETURN(const GgufHeader header, ReadGgufHeader(path));
  ASSIGN_OR_RETURN(const std::string arch, ArchitectureOf(decoder.config));
  const std::vector<AdapterTensor> expected = AdapterTensors(decoder, store, HasPairedRows(arch));
  std::vector<TensorInfo> infos = header.tensors();
  bool same = infos.size() == expected.size();
  for (size_t i = 0; same && i < infos.size(); ++i) infos[i].head_rows = expected[i].spec.head_rows;
  ASSIGN_OR_RETURN(const std::unique_ptr<TensorFile> file,
                   TensorFile::OpenTable(path, header.data_begin(), std::move(infos)));
  std::vector<float> values;
  for (size_t i = 0; same && i < expected.size(); ++i) {
    const TensorInfo& info = file->tensors()[i];
    same = info.name == expected[i].spec.name && info.shape == expected[i].spec.shape;
    if (!same) break;
    values.resize(static_cast<size_t>(info.elements));
    RETURN_IF_ERROR(file->ReadFloats(info, 0, info.elements, values.data()));
    same = values == expected[i].values;
  }
  if (same) return absl::OkStatus();
  return absl::DataLossError(path + ": the adapter read back differs from the trained one; is the disk damaged?");
}

}  // namespace thimble
