#include "trainer/merged_weight.h"

#include <algorithm>
#include <cmath>

#include "ops/check.h"
#include "ops/quantize_merged.h"
#include "ops/ternary_storage.h"

namespace thimble {
namespace {

// Rows of a weight decoded at a time: bounded memory whatever the width.
constexpr int64_t kRowsAtOnce = 64;

// out = row `o` of W, or of k (W + scale B A) where the layer has an adapter.
void MergeRow(const Store& store, const LinearWeights* linear, const WeightView& w, int64_t o, float* out) {
  MergedWeight merged{w, {}, {}, 0};
  const bool adapted = linear != nullptr && linear->lora_a >= 0;
  if (adapted) merged = {w, store.matrix(linear->lora_a), store.matrix(linear->lora_b), linear->lora_scale};
  MergedRow(merged, o, out);
  if (!adapted || linear->magnitude < 0) return;
  double norm = 0;
  for (int64_t i = 0; i < w.cols; ++i) norm += static_cast<double>(out[i]) * out[i];
  const float k = store.matrix(linear->magnitude)(0, o) / static_cast<float>(std::sqrt(norm));
  for (int64_t i = 0; i < w.cols; ++i) out[i] *= k;
}

}  // namespace

absl::Status CheckMergeable(const Decoder& decoder) {
  if (!decoder.config.ternary || decoder.adapter.rank == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "an adapter cannot be merged into ternary weights, which would be ternary no more: export it as peft");
}

MergedWeights::MergedWeights(const Decoder& decoder, const Store& store)
    : store_(store), ternary_(decoder.config.ternary) {
  for (const LayerWeights& layer : decoder.layers) {
    for (const LinearWeights* linear : layer.Linears()) linears_[linear->weight] = linear;
  }
  for (StoreId id = 0; id < static_cast<StoreId>(store.size()); ++id) {
    const StoreEntry& entry = store.entry(id);
    const bool kind = entry.category == Category::kWeights || entry.category == Category::kParameters;
    const bool teacher = entry.name.rfind(kTeacherPrefix, 0) == 0;
    if (kind && !teacher && entry.name.find(".lora_") == std::string::npos) ids_.push_back(id);
  }
}

absl::Status MergedWeights::ForRows(StoreId id, absl::FunctionRef<absl::Status(ConstVector rows)> use) const {
  const StoreEntry& entry = store_.entry(id);
  const auto found = linears_.find(id);
  const LinearWeights* linear = found == linears_.end() ? nullptr : found->second;
  ASSIGN_OR_RETURN(ReadableWeight weight, store_.Read(id));
  float master_scale = 0;
  if (weight.view.format == Format::kTernary) {
    master_scale = *weight.view.absmax * MasterFactor(weight.view);
    weight.view.absmax = &master_scale;
  }
  std::vector<float> rows(kRowsAtOnce * entry.cols);
  for (int64_t first = 0; first < entry.rows; first += kRowsAtOnce) {
    const int64_t count = std::min(kRowsAtOnce, entry.rows - first);
    for (int64_t r = 0; r < count; ++r) {
      MergeRow(store_, linear, weight.view, first + r, rows.data() + r * entry.cols);
    }
    RETURN_IF_ERROR(use(ConstVector(rows.data(), count * entry.cols)));
  }
  return absl::OkStatus();
}

absl::StatusOr<QuantizedWeight> MergedWeights::Ternary(StoreId id) const {
  ASSIGN_OR_RETURN(const ReadableWeight weight, store_.Read(id));
  if (weight.view.format != Format::kTernary) return QuantizeTernary(weight.view);
  QuantizedWeight copy;
  copy.format = Format::kTernary;
  copy.rows = weight.view.rows;
  copy.cols = weight.view.cols;
  copy.absmax = {*weight.view.absmax};
  const auto* codes = static_cast<const uint8_t*>(weight.view.data);
  copy.codes.assign(codes, codes + TernaryBytes(copy.rows, copy.cols) - static_cast<int64_t>(sizeof(float)));
  return copy;
}

}  // namespace thimble
