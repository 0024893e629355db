// Weights of codes with scales as compressed-tensors stores them (llm-compressor, vLLM, transformers), and NVFP4 also
// as ModelOpt does: reading one as it is, declaring and writing one. With the module's name P:
//   int4        P.weight_packed I32 [out, in / 8]: code + 8, the lowest bits first; P.weight_shape I64 [2];
//               P.weight_scale [out, groups]; perhaps P.weight_zero_point I32 [out / 8, groups], P.weight_g_idx I32
//               [in]
//   int8, fp8   P.weight I8, F8_E4M3 or F8_E5M2 [out, in]; P.weight_scale [out, 1], [out, groups] or of one element
//   NVFP4       P.weight U8 [out, in / 2], the low nibble first; P.weight_scale F8_E4M3 [out, in / 16];
//   P.weight_scale_2
//               F32, the tensor's scale (ModelOpt); or P.weight_packed and P.weight_global_scale, its reciprocal
// Source: compressed-tensors 0.20, compressors/; TensorRT-Model-Optimizer, torch/export.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "data/bnb_weight.h"
#include "data/model_folder.h"
#include "ops/quantize_scaled.h"

namespace thimble {

// What is known of a stored weight without its values.
struct StoredLayout {
  Format format = Format::kInt4;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t group = 0;
  bool offsets = false;  // zero points
  bool columns = false;  // columns whose groups stand in no order
  int64_t Bytes() const { return ScaledBytes(format, rows, cols, group, offsets, columns); }
};

// What config.json says of all of them, for plans without tensors.
struct StoredScheme {
  Format format = Format::kNF4;
  int64_t group = 0;  // of nf4 and fp4 not said; 0: a row
  bool double_quant = false;
  bool offsets = false;
  bool columns = false;
  std::vector<std::string> skip;
};
// Whether the folder holds `name` (as "...q_proj.weight") in one of these forms.
bool HasCompressedWeight(const ModelFolder& folder, std::string_view name);
// The tensors that it consists of.
std::vector<std::string> CompressedParts(const ModelFolder& folder, std::string_view name);
// InvalidArgument or NotFound, naming the tensor, unless every part is there and fits.
absl::StatusOr<StoredLayout> CompressedLayout(const ModelFolder& folder, const std::string& name);
absl::StatusOr<QuantizedWeight> ReadCompressedWeight(const ModelFolder& folder, const std::string& name);

// Quantises a matrix of F32, BF16 or F16 while it streams in, NVFP4 in two passes. Memory: the result and a few rows.
// InvalidArgument for NaN, infinity, another type, or a shape that is no matrix or that groups do not fit into.
absl::StatusOr<QuantizedWeight> QuantizeTensorScaled(const TensorRef& tensor, Format format, int32_t group);

// What a weight of this shape becomes in a file, and pushing it there.
std::vector<TensorSpec> CompressedSpecs(const std::string& name, Format format, int32_t group, int64_t rows,
                                        int64_t cols);
absl::Status AppendCompressedWeight(const std::string& name, const QuantizedWeight& weight, ModelFolderWriter* writer);
// The entry quantization_config of config.json, and reading one of these kinds.
absl::StatusOr<StoredScheme> ParseCompressedScheme(const nlohmann::json& config, const std::string& place);
nlohmann::json CompressedConfig(Format format, int32_t group);

}  // namespace thimble
