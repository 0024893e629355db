// Weights as GPTQ and AWQ folders store them: P.qweight, P.qzeros, P.scales and, of GPTQ, P.g_idx, for the module's
// name P; what their bits mean stands in config.json's quantization_config (or in quantize_config.json). The weight of
// column i and row o is (code - zero) * scale, exact in f32 for scales of 16 bits; kernels that compute it in f16 round
// it.
//   GPTQ  2, 3, 4 or 8 bits: qweight I32 [in * bits / 32, out], qzeros I32 [groups, out * bits / 32], scales [groups,
//         out], g_idx I32 [in]. checkpoint_format "gptq" stores zeros less one, "gptq_v2" as they are.
//   AWQ   4 bits, version gemm: qweight I32 [in, out / 8], qzeros I32 [groups, out / 8], scales [groups, out].
// Source: GPTQModel 7.7 and AutoAWQ 0.2.9.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "data/compressed_weight.h"
#include "data/model_folder.h"
#include "nlohmann/json.hpp"

namespace thimble {

struct GptqScheme {
  bool awq = false;
  int bits = 4;
  int64_t group = 128;     // -1: a row
  bool act_order = false;  // desc_act, as the file claims
  bool symmetric = false;
  bool zeros_less_one = true;
};
// From an object quantization_config; `place` leads the message. InvalidArgument for what is not read here.
absl::StatusOr<GptqScheme> ParseGptqScheme(const nlohmann::json& config, const std::string& place);
// The layout that the scheme alone promises, for plans.
StoredLayout PromisedLayout(const GptqScheme& scheme, int64_t rows, int64_t cols);

// Whether the folder holds `name` (as "...q_proj.weight") in one of these forms.
bool HasGptqWeight(const ModelFolder& folder, std::string_view name);
// The tensors that it consists of.
std::vector<std::string> GptqParts(const ModelFolder& folder, std::string_view name);
// InvalidArgument or NotFound, naming the tensor, unless every part is there and fits. The layout reads zeros and order
// of the columns, which take no memory where they are the usual ones.
absl::StatusOr<StoredLayout> GptqLayout(const ModelFolder& folder, const std::string& name);
absl::StatusOr<QuantizedWeight> ReadGptqWeight(const ModelFolder& folder, const std::string& name);

}  // namespace thimble
