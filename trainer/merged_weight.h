// The weights of a model as an export writes them: adapters merged in f32, a few rows at a time.
#pragma once

#include <map>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ops/quantize_4bit.h"
#include "trainer/decoder.h"
#include "trainer/store.h"

namespace thimble {

// InvalidArgument for an adapter beside ternary weights.
absl::Status CheckMergeable(const Decoder& decoder);

class MergedWeights {
 public:
  // Both outlive this object.
  MergedWeights(const Decoder& decoder, const Store& store);
  // The model's own weights in order of declaration, without adapters.
  const std::vector<StoreId>& ids() const { return ids_; }
  // Calls use with all rows of W + scale * B A (DoRA: scaled rows), a few whole rows a call, until it fails.
  // Of a ternary layer: its masters.
  absl::Status ForRows(StoreId id, absl::FunctionRef<absl::Status(ConstVector rows)> use) const;

  // Whether this is a linear layer of a ternary model, and its codes and scale.
  bool IsTernary(StoreId id) const { return ternary_ && linears_.contains(id); }
  absl::StatusOr<QuantizedWeight> Ternary(StoreId id) const;

 private:
  const Store& store_;
  bool ternary_;
  std::vector<StoreId> ids_;
  std::map<StoreId, const LinearWeights*> linears_;
};

}  // namespace thimble
