// Scaled dot-product attention over packed samples: causal, grouped queries, sliding window, soft cap. Tile by tile:
// no matrix of tokens by tokens exists, forward or backward.
#pragma once

#include <cstdint>

#include "ops/compute.h"
#include "ops/view.h"

namespace thimble {

struct AttentionShape {
  int num_heads = 1;
  int num_kv_heads = 1;  // divides num_heads; query head h reads key/value head h / (num_heads / num_kv_heads)
  int head_dim = 64;
  float scale = 1;     // of q k^T, usually head_dim^-0.5
  int64_t window = 0;  // keys a query sees, itself included; 0: all before it
  float soft_cap = 0;  // s = soft_cap * tanh(s / soft_cap) after scaling; 0: none
  // kBF16: where the processor has tiles (AMX), the operands of the products are rounded to bf16, probabilities and
  // their gradients too, and summed in f32. Elsewhere that gains nothing, and products are those of f32.
  Compute compute = Compute::kF32;
};

// Bytes for up to `tokens` query rows with NumThreads() threads: a few tiles a thread and 8 + 4 * num_heads bytes a
// token.
int64_t AttentionScratchBytes(const AttentionShape& shape, int64_t tokens);

// out[i, h] = sum_j softmax_j(s_ij) v_j and lse[i, h] = log sum_j exp(s_ij), s_ij = cap(scale * q_i . k_j), over the
// visible keys max(starts[i], S-T+i-window+1) <= j <= S-T+i.
// q [T, num_heads * head_dim]; k, v [S, num_kv_heads * head_dim], S >= T: query row i stands at key row S-T+i, so a
// key/value cache is k and v with T new rows at the end. starts [T]: key row of the first token of row i's sample,
// non-decreasing, at most S-T+i. out [T, num_heads * head_dim], lse [T, num_heads], both written.
// The cost is that of the visible pairs, to a tile. A row's bits do not depend on the other samples of the batch, nor
// on how many rows of its sample are asked for at a time. Source: Dao 2023, arXiv:2307.08691.
void AttentionForward(ConstMatrix q, ConstMatrix k, ConstMatrix v, ConstInts starts, const AttentionShape& shape,
                      Matrix out, Matrix lse, Scratch scratch);

// Gradients with S == T; lse and out are what forward wrote. dq, dk, dv are written; rows as q, k, v.
void AttentionBackward(ConstMatrix q, ConstMatrix k, ConstMatrix v, ConstMatrix out, ConstMatrix lse, ConstMatrix dout,
                       ConstInts starts, const AttentionShape& shape, Matrix dq, Matrix dk, Matrix dv, Scratch scratch);

}  // namespace thimble
