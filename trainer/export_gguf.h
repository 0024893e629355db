// A trained or plain model as a GGUF file for llama.cpp, and a LoRA adapter as one.
// Source: llama.cpp's model and adapter loaders, and its llama-quantize for mixes of types.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "data/tensor_dtype.h"
#include "trainer/export.h"

namespace thimble {

// What matrices become: one type throughout, or a mix. Norms and biases are F32 in any.
struct GgufMix {
  std::string_view name;  // "f16", "q4_0", "q4_k_m"
  TensorDType type;       // of linear layers and an embedding that is no output layer
  TensorDType more;       // of the output layer, and in a mix of the layers that need more
  bool is_mix;            // attn_v and ffn_down of some layers are `more`
  uint32_t file_type;     // general.file_type; 0xffffffff: llama.cpp has no number for it
};
// nullptr for a name that is none.
const GgufMix* FindGgufMix(std::string_view name);
std::vector<std::string> GgufMixNames();

// The type of a tensor (Hugging Face name) of `cols` columns: where its rows are no whole blocks, the nearest type with
// smaller ones, or F16.
TensorDType GgufTensorType(const GgufMix& mix, const std::string& name, int64_t layers, int64_t cols, bool tied);

// Writes the file `out`: weights merged as ExportMerged does, in the layout and with the metadata and the tokenizer
// that llama.cpp expects. as_served: matrices in the formats that they were trained for (trainer/served_weights.h), the
// others in F16, in place of the mix's types. InvalidArgument for a model or a tokenizer that llama.cpp has no equal
// of.
absl::Status ExportGguf(const Decoder& decoder, const Store& store, const ExportSource& source, const GgufMix& mix,
                        const std::string& out, bool as_served = false);

// Its errors that are known without the weights' values, of declared weights: for runs that export at their end.
absl::Status CheckGgufExport(const Decoder& decoder, const Store& store, const ExportSource& source,
                             const GgufMix& mix);

// Writes the adapter alone, in F32. InvalidArgument for DoRA, which llama.cpp does not apply.
absl::Status ExportGgufAdapter(const Decoder& decoder, const Store& store, const std::string& out);
// DataLoss unless the file holds what ExportGgufAdapter writes, bit for bit.
absl::Status CheckGgufAdapter(const Decoder& decoder, const Store& store, const std::string& path);

}  // namespace thimble
