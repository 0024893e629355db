#include "trainer/served_weights.h"

#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "ops/check.h"
#include "ops/quantize_merged.h"
#include "ops/quantize_scaled.h"
#include "trainer/tape_ops.h"

namespace thimble {
namespace {

StoreId Declare(const ServedOptions& options, StoreId weight, Store* store, LinearWeights* linear = nullptr) {
  const StoreEntry& entry = store->entry(weight);
  const std::optional<ServedFormat> served = options.format_of(entry.name, entry.rows, entry.cols);
  if (!served) return -1;
  const Format format = served->format;
  CHECK(CanQuantizeMerged(format) && entry.cols % InfoOf(format).values_per_block == 0) << entry.name;
  int64_t bytes = StoredBytes(format, entry.rows * entry.cols);
  if (HasScales(format)) {
    CHECK(linear != nullptr) << entry.name;
    const int64_t group = GroupOf(format, served->group, entry.cols);
    CHECK_GT(group, 0) << entry.name;
    linear->served_group = group;
    bytes = ScaledBytes(format, entry.rows, entry.cols, group, /*offsets=*/false, /*columns=*/false);
  }
  return store->AddBound(absl::StrCat(entry.name, "#served"), entry.rows, entry.cols, Category::kServed, format, bytes);
}

// Calls use(weight, served, linear) for each; linear is null for embedding and output layer.
template <typename Use>
void ForEachServed(const Decoder& decoder, const Use& use) {
  if (decoder.served_embedding >= 0) use(decoder.embedding, decoder.served_embedding, nullptr);
  for (const LayerWeights& layer : decoder.layers) {
    for (const LinearWeights* linear : layer.Linears()) {
      if (linear->served >= 0) use(linear->weight, linear->served, linear);
    }
  }
  const bool own_head = decoder.served_head >= 0 && decoder.served_head != decoder.served_embedding;
  if (own_head) use(decoder.head, decoder.served_head, nullptr);
}

}  // namespace

void DeclareServed(const ServedOptions& options, Decoder* decoder, Store* store) {
  decoder->activation_grid = options.activations;
  decoder->served_embedding = Declare(options, decoder->embedding, store);
  for (LayerWeights& layer : decoder->layers) {
    for (LinearWeights* linear : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
      CHECK_LT(linear->magnitude, 0) << linear->name;
      linear->served = Declare(options, linear->weight, store, linear);
    }
  }
  const bool tied = decoder->head == decoder->embedding;
  decoder->served_head = tied ? decoder->served_embedding : Declare(options, decoder->head, store);
}

bool HasServed(const Decoder& decoder) {
  bool any = false;
  ForEachServed(decoder, [&any](StoreId, StoreId, const LinearWeights*) { any = true; });
  return any;
}

StoreId ServedOf(const Decoder& decoder, StoreId weight) {
  StoreId found = -1;
  ForEachServed(decoder, [&](StoreId own, StoreId served, const LinearWeights*) {
    if (own == weight) found = served;
  });
  return found;
}

void BindServed(const Decoder& decoder, Store* store) {
  ForEachServed(decoder, [store](StoreId, StoreId served, const LinearWeights* linear) {
    const StoreEntry& entry = store->entry(served);
    if (entry.view.data != nullptr) return;
    if (HasScales(entry.view.format)) {
      auto weight = std::make_shared<QuantizedWeight>(
          MakeScaledWeight(entry.view.format, entry.rows, entry.cols, linear->served_group));
      const WeightView view = weight->View();
      const absl::Status bound = store->Bind(served, view, std::move(weight));
      CHECK(bound.ok()) << bound;
      return;
    }
    auto bytes = std::make_shared<std::vector<uint8_t>>(entry.bytes);
    WeightView view = entry.view;
    view.data = bytes->data();
    const absl::Status bound = store->Bind(served, view, std::move(bytes));
    CHECK(bound.ok()) << bound;
  });
}

void RecordQuantizeServed(const Decoder& decoder, Tape* tape) {
  ForEachServed(decoder, [tape](StoreId weight, StoreId served, const LinearWeights* linear) {
    LoraSpec lora;
    if (linear != nullptr && linear->lora_a >= 0) {
      lora.a = tape->Persistent(linear->lora_a);
      lora.b = tape->Persistent(linear->lora_b);
      lora.scale = linear->lora_scale;
    }
    RecordQuantizeMerged(tape, tape->Persistent(weight), lora, tape->Persistent(served));
  });
}

}  // namespace thimble
