#include "trainer/divergence.h"

#include <algorithm>

#include "ops/linear_kl.h"

namespace thimble {

int64_t Divergence::ScratchBytes(int64_t tokens, int64_t p_dim, int64_t q_dim) {
  return LinearKLScratchBytes(tokens, p_dim, q_dim);
}

void Divergence::Add(ConstMatrix p, const WeightView& p_head, ConstMatrix q, const WeightView& q_head) {
  const int64_t tokens = p.rows;
  const size_t before = kl_.size();
  kl_.resize(before + static_cast<size_t>(tokens));
  top_p_.resize(tokens);
  top_q_.resize(tokens);
  scratch_.Reserve(ScratchBytes(tokens, p.cols, q.cols));
  LinearKL(p, p_head, q, q_head, Vector(kl_.data() + before, tokens), VectorView<int32_t>(top_p_.data(), tokens),
           VectorView<int32_t>(top_q_.data(), tokens), scratch_.view());
  for (int64_t t = 0; t < tokens; ++t) agreed_ += top_p_[t] == top_q_[t] ? 1 : 0;
}

double Divergence::MeanKL() const {
  double sum = 0;
  for (const float kl : kl_) sum += kl;
  return kl_.empty() ? 0 : sum / static_cast<double>(tokens());
}

double Divergence::MaxKL() const {
  double most = 0;
  for (const float kl : kl_) most = std::max(most, static_cast<double>(kl));
  return most;
}

double Divergence::Agreement() const {
  return kl_.empty() ? 0 : static_cast<double>(agreed_) / static_cast<double>(tokens());
}

}  // namespace thimble
