// The weights of a model as an export writes them: adapters merged in f32, a few rows at a time.
#pragma once

#include <map>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "trainer/decoder.h"
#include "trainer/store.h"

namespace thimble {

class MergedWeights {
 public:
  // Both outlive this object.
  MergedWeights(const Decoder& decoder, const Store& store);
  // The model's own weights in order of declaration, without adapters.
  const std::vector<StoreId>& ids() const { return ids_; }
  // Calls use with all rows of W + scale * B A (DoRA: scaled rows), a few whole rows a call, until it fails.
  absl::Status ForRows(StoreId id, absl::FunctionRef<absl::Status(ConstVector rows)> use) const;

 private:
  const Store& store_;
  std::vector<StoreId> ids_;
  std::map<StoreId, const LinearWeights*> linears_;
};

}  // namespace thimble
