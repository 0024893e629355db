// Kullback-Leibler divergence between the next-token distributions of two models, from hidden states and heads, tile by
// tile: no logits in memory.
#pragma once

#include <cstdint>

#include "ops/format.h"
#include "ops/view.h"

namespace thimble {

// Bytes for NumThreads() threads and any vocabulary: 40 bytes a row, 48 KiB a thread, and tiles of both heads, 1.25 MiB
// where their dimensions add up to at most 10240 and 128 bytes a dimension above; for a head that is read through a
// reader two tiles of its values as well.
int64_t LinearKLScratchBytes(int64_t rows, const WeightView& head_p, const WeightView& head_q);

// kl_t = sum_v P_tv log(P_tv / Q_tv) in nats, at least 0, with P = softmax(h_p head_p^T), Q = softmax(h_q head_q^T);
// top_p, top_q: the most likely id of each, the lowest where several are. Exactly 0 where P and Q have the same inputs.
// h_p [T, D_p], head_p [V, D_p], h_q [T, D_q], head_q [V, D_q]; kl, top_p, top_q [T], written.
// Heads may be read through a reader. soft_cap_p, soft_cap_q: z = soft_cap * tanh(z / soft_cap); 0: none.
void LinearKL(ConstMatrix h_p, const WeightView& head_p, ConstMatrix h_q, const WeightView& head_q, Vector kl,
              VectorView<int32_t> top_p, VectorView<int32_t> top_q, Scratch scratch, float soft_cap_p = 0,
              float soft_cap_q = 0);

}  // namespace thimble
