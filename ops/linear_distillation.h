// Cross-entropy of a linear head mixed with its divergence from a teacher's, without logits of either in memory: both
// exist for one tile of rows by vocabulary at a time, forward and backward.
#pragma once

#include <cstdint>

#include "ops/compute.h"
#include "ops/format.h"
#include "ops/view.h"

namespace thimble {

// P is the teacher's distribution, Q the student's.
enum class DivergenceDirection : uint8_t {
  kForward,    // KL(P || Q)
  kReverse,    // KL(Q || P)
  kSymmetric,  // their mean
};

struct LinearDistillationOptions {
  int32_t ignore_index = -100;
  DivergenceDirection direction = DivergenceDirection::kForward;
  float weight = 1;       // w of the divergence; cross-entropy gets 1 - w
  float temperature = 1;  // logits are divided by it in the divergence, which is multiplied by its square
  float soft_cap = 0;     // z = soft_cap * tanh(z / soft_cap); 0: none
  float teacher_soft_cap = 0;
  Compute compute = Compute::kF32;
};

// What the backward pass wants of each token, beside its inputs.
inline constexpr int64_t kDistillationStats = 4;

// Bytes for NumThreads() threads, any vocabulary and any number of tokens: at most 4 MiB for dimensions of up to 6144
// and 8 threads. For a head that is read through a reader two tiles of its values come on top.
int64_t LinearDistillationScratchBytes(const WeightView& head, const WeightView& teacher_head);

struct DistillationInputs {
  ConstMatrix h;            // [T, D]
  WeightView head;          // [V, D], any format, in memory or through a reader
  ConstMatrix teacher_h;    // [T, D_t]
  WeightView teacher_head;  // [V, D_t], likewise
  ConstInts targets;        // [T] in [0, V) or ignore_index
};

// loss_t = (1 - w) (lse_t - z_{t,target}) + w temperature^2 divergence_t, in nats; both 0 where target_t is
// ignore_index. loss, divergence [T] and stats [T, kDistillationStats] written. A row's figures do not depend on the
// other rows. The divergence is exactly 0 where teacher and student have the same inputs. Source: Hinton et al. 2015,
// arXiv:1503.02531.
void LinearDistillationForward(const DistillationInputs& in, const LinearDistillationOptions& options, Vector loss,
                               Vector divergence, Matrix stats, Scratch scratch);

// Gradients of grad_scale * sum_t loss_t for the student. dh [T, D] is written (0 where ignored), dhead [V, D]
// accumulated; an empty dhead (data == nullptr) is not computed. stats as forward wrote them.
void LinearDistillationBackward(const DistillationInputs& in, ConstMatrix stats, float grad_scale,
                                const LinearDistillationOptions& options, Matrix dh, Matrix dhead, Scratch scratch);

}  // namespace thimble
