// The optimisers: their options, and what each keeps for a trained parameter, declared in the store before it is
// allocated so that a plan counts it.
#pragma once

#include <cstdint>
#include <string_view>

#include "trainer/store.h"

namespace thimble {

enum class OptimizerKind : uint8_t { kAdamW };
std::string_view NameOf(OptimizerKind kind);

struct OptimizerOptions {
  OptimizerKind kind = OptimizerKind::kAdamW;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  bool decay_all = false;    // norms and biases decay as well, not only matrices
  double max_grad_norm = 0;  // 0: no clipping; the norm is computed all the same
};

// Attaches the optimiser's state to every trainable entry, once, as entries of Category::kMoments. In this order:
//   adamw      #exp_avg, #exp_avg_sq: f32 of the parameter's shape
void DeclareOptimizerState(const OptimizerOptions& options, Store* store);

}  // namespace thimble
