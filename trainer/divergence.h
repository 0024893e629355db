// How far one model's next-token distributions are from another's, token by token.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "ops/format.h"
#include "ops/scratch_buffer.h"
#include "ops/view.h"

namespace thimble {

class Divergence {
 public:
  // Adds the tokens of a batch: final hidden states p [T, D_p] and q [T, D_q] with the output layers that belong to
  // them, [V, D_p] and [V, D_q].
  void Add(ConstMatrix p, const WeightView& p_head, ConstMatrix q, const WeightView& q_head);

  int64_t tokens() const { return static_cast<int64_t>(kl_.size()); }
  // All below are 0 without tokens.
  double MeanKL() const;
  double MaxKL() const;
  int64_t agreed() const { return agreed_; }  // tokens with the same most likely next token
  // Their share.
  double Agreement() const;
  // KL(P || Q) of every token in the order in which they came, nats. Last: none is left.
  std::vector<float> TakeKL() { return std::move(kl_); }

  // Of token t of the last batch.
  float kl(int64_t t) const { return kl_[kl_.size() - top_p_.size() + static_cast<size_t>(t)]; }
  bool agrees(int64_t t) const { return top_p_[t] == top_q_[t]; }

  // Scratch for batches of up to `tokens`, and what was taken: at most 4 MiB, whatever the vocabulary and the batch,
  // for dimensions of up to 6144 (5 where f32 heads are read through readers). Beside it 4 bytes are kept of every
  // token, and 8 of those of the last batch.
  static int64_t ScratchBytes(int64_t tokens, const WeightView& p_head, const WeightView& q_head);
  int64_t held_bytes() const { return scratch_.bytes(); }

 private:
  std::vector<float> kl_;
  std::vector<int32_t> top_p_, top_q_;  // of the last batch
  int64_t agreed_ = 0;
  ScratchBuffer scratch_;
};

}  // namespace thimble
