// Cross-entropy of a linear head without logits in memory (cut cross-entropy): logits exist for one tile of rows by
// vocabulary at a time, forward and backward.
#pragma once

#include <cstdint>

#include "ops/compute.h"
#include "ops/format.h"
#include "ops/view.h"

namespace thimble {

struct LinearCrossEntropyOptions {
  int32_t ignore_index = -100;
  float soft_cap = 0;         // z = soft_cap * tanh(z / soft_cap); 0: none
  float label_smoothing = 0;  // alpha in [0, 1)
  float z_loss = 0;           // lambda
  // Rows of a vocabulary tile are left out of the gradients where every |softmax - target| is below this; 0: exact.
  // 2^-12 suits bf16. No effect with both soft_cap and label_smoothing, where no entry is small.
  float filter_threshold = 0;
  Compute compute = Compute::kF32;
};

// Bytes for NumThreads() threads; any vocabulary. With loss and lse (8 bytes a token) at most 2 MiB + 16 bytes a token
// for hidden_dim <= 6144 and 2 threads. fetched_row_bytes: of a row of a head that is read through a reader, else 0;
// two tiles of it, at most 0.4 MiB each for bf16, come on top.
int64_t LinearCrossEntropyScratchBytes(int64_t tokens, int64_t hidden_dim, const LinearCrossEntropyOptions& options,
                                       int64_t fetched_row_bytes = 0);

// loss_t = (1-alpha) (lse_t - z_{t,target}) + alpha (lse_t - mean_v z_tv) + lambda lse_t^2, z = cap(h head^T),
// lse_t = log sum_v exp z_tv; both 0 where target_t is ignore_index. A row's loss does not depend on the other rows.
// h [T, D]; head [V, D], any format, in memory or through a reader; targets [T] in [0, V) or ignore_index; loss [T],
// lse [T] written. Source: Wijmans et al. 2024, arXiv:2411.09009.
void LinearCrossEntropyForward(ConstMatrix h, const WeightView& head, ConstInts targets,
                               const LinearCrossEntropyOptions& options, Vector loss, Vector lse, Scratch scratch);

// Gradients of grad_scale * sum_t loss_t. dh [T, D] is written (0 where ignored), dhead [V, D] accumulated; an empty
// dhead (data == nullptr) is not computed. lse as forward wrote it.
void LinearCrossEntropyBackward(ConstMatrix h, const WeightView& head, ConstInts targets, ConstVector lse,
                                float grad_scale, const LinearCrossEntropyOptions& options, Matrix dh, Matrix dhead,
                                Scratch scratch);

// Loss and dh for a frozen head in one pass over it: two products instead of three. Two passes with filter_threshold
// and z_loss, or with soft_cap and label_smoothing, together.
void LinearCrossEntropyFused(ConstMatrix h, const WeightView& head, ConstInts targets, float grad_scale,
                             const LinearCrossEntropyOptions& options, Vector loss, Vector lse, Matrix dh,
                             Scratch scratch);

}  // namespace thimble
