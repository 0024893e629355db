// The optimisers: their options, and what each keeps for a trained parameter, declared in the store before it is
// allocated so that a plan counts it.
#pragma once

#include <cstdint>
#include <string_view>

#include "ops/adamw_8bit.h"
#include "trainer/store.h"

namespace thimble {

enum class OptimizerKind : uint8_t { kAdamW, kAdamW8Bit, kLion, kAdafactor, kApollo };
std::string_view NameOf(OptimizerKind kind);

// Where the optimiser's state lies between updates.
enum class StateTier : uint8_t { kDevice, kHost, kDisk };

struct OptimizerOptions {
  OptimizerKind kind = OptimizerKind::kAdamW;
  StateTier state_tier = StateTier::kDevice;
  // Each parameter is updated as soon as its gradient is complete: see RecordUpdatesInBackward.
  bool in_backward = false;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  bool decay_all = false;                                     // norms and biases decay as well, not only matrices
  double max_grad_norm = 0;                                   // 0: no clipping; the norm is computed all the same
  MomentRounding moment_rounding = MomentRounding::kNearest;  // adamw8bit
  // apollo
  int64_t projection_rank = 128;
  double projection_scale = 1;
  int64_t projection_steps = 200;
  uint64_t seed = 0;
};

// Attaches the optimiser's state to every trainable entry, once, as entries of Category::kMoments, with places in the
// state tier where options.state_tier says so; with in_backward, gradients move to the arena. In this order:
//   adamw      #exp_avg, #exp_avg_sq: f32 of the parameter's shape
//   adamw8bit  #exp_avg, #exp_avg_sq: one byte an element; #exp_avg_absmax, #exp_avg_sq_absmax: f32, one a block of
//   256.
//              As adamw for parameters of fewer than 4,096 elements.
//   lion       #exp_avg: f32 of the parameter's shape
//   adafactor  #exp_avg_sq_row [rows], #exp_avg_sq_col [cols]; of a vector #exp_avg_sq [n]
//   apollo     #exp_avg, #exp_avg_sq: f32 [rows, rank] or, where rows < cols, [rank, cols]; #update_norm [1]. As adamw
//              for vectors and for matrices with a side of at most `rank`.
// Bytes are exact; Store::PaddingBytes() counts their alignment.
void DeclareOptimizerState(const OptimizerOptions& options, Store* store);

}  // namespace thimble
