#include "trainer/divergence.h"

#include <algorithm>

#include "ops/linear_kl.h"

namespace thimble {
namespace {

// Tokens that share a pass over the heads: their running sums stay small beside the tiles.
constexpr int64_t kTokensAtOnce = 8192;

}  // namespace

int64_t Divergence::ScratchBytes(int64_t tokens, const WeightView& p_head, const WeightView& q_head) {
  return LinearKLScratchBytes(std::min(tokens, kTokensAtOnce), p_head, q_head);
}

void Divergence::Add(ConstMatrix p, const WeightView& p_head, ConstMatrix q, const WeightView& q_head) {
  const int64_t tokens = p.rows;
  const size_t before = kl_.size();
  kl_.resize(before + static_cast<size_t>(tokens));
  top_p_.resize(tokens);
  top_q_.resize(tokens);
  scratch_.Reserve(ScratchBytes(tokens, p_head, q_head));
  for (int64_t first = 0; first < tokens; first += kTokensAtOnce) {
    const int64_t count = std::min(kTokensAtOnce, tokens - first);
    LinearKL(p.Rows(first, count), p_head, q.Rows(first, count), q_head, Vector(kl_.data() + before + first, count),
             VectorView<int32_t>(top_p_.data() + first, count), VectorView<int32_t>(top_q_.data() + first, count),
             scratch_.view());
  }
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
