#include "ops/grad_norm.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "ops/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/grad_norm.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Behind foreach_target.h, which includes this file once a level.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// Sixteen running sums (index modulo 16), added up as a tree: the same bits for every vector width. The square of a
// float is exact in double, so fusing it with the sum would change nothing.
double SumSpan(const float* x, int64_t n) {
  alignas(64) double sums[16] = {};
  int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::CappedTag<double, 8> d;
  const hn::Rebind<float, decltype(d)> df;
  constexpr int64_t kLanes = hn::MaxLanes(d);
  const auto square = [&](int64_t k) HWY_ATTR {
    const auto v = hn::PromoteTo(d, hn::LoadU(df, x + k));
    return hn::Mul(v, v);
  };
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0;
  for (; i + 16 <= n; i += 16) {
    s0 = hn::Add(s0, square(i));
    s1 = hn::Add(s1, square(i + kLanes));
    if (kLanes <= 4) {
      s2 = hn::Add(s2, square(i + 2 * kLanes));
      s3 = hn::Add(s3, square(i + 3 * kLanes));
    }
    if (kLanes <= 2) {
      s4 = hn::Add(s4, square(i + 4 * kLanes));
      s5 = hn::Add(s5, square(i + 5 * kLanes));
      s6 = hn::Add(s6, square(i + 6 * kLanes));
      s7 = hn::Add(s7, square(i + 7 * kLanes));
    }
  }
  hn::Store(s0, d, sums);
  hn::Store(s1, d, sums + kLanes);
  if (kLanes <= 4) {
    hn::Store(s2, d, sums + 2 * kLanes);
    hn::Store(s3, d, sums + 3 * kLanes);
  }
  if (kLanes <= 2) {
    hn::Store(s4, d, sums + 4 * kLanes);
    hn::Store(s5, d, sums + 5 * kLanes);
    hn::Store(s6, d, sums + 6 * kLanes);
    hn::Store(s7, d, sums + 7 * kLanes);
  }
#endif
  for (; i < n; ++i) sums[i % 16] += static_cast<double>(x[i]) * x[i];
  for (int k = 8; k > 0; k /= 2) {
    for (int j = 0; j < k; ++j) sums[j] += sums[j + k];
  }
  return sums[0];
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace thimble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thimble {
namespace {

HWY_EXPORT(SumSpan);

constexpr int64_t kMaxChunks = 256;
constexpr int64_t kMinChunk = 1 << 14;

}  // namespace

double SumOfSquares(ConstVector x) {
  const int64_t chunk = std::max(kMinChunk, (x.size + kMaxChunks - 1) / kMaxChunks);
  const int64_t chunks = (x.size + chunk - 1) / chunk;
  double sums[kMaxChunks];
  ParallelFor(chunks, [&](int64_t c, int) {
    const int64_t begin = c * chunk;
    sums[c] = HWY_DYNAMIC_DISPATCH(SumSpan)(x.data + begin, std::min(chunk, x.size - begin));
  });
  double total = 0;
  for (int64_t c = 0; c < chunks; ++c) total += sums[c];
  return total;
}

float ClipFactor(double norm, double max_norm) {
  if (max_norm == 0) return 1;
  const double factor = max_norm / (norm + 1e-6);
  return factor > 1 ? 1 : static_cast<float>(factor);
}

}  // namespace thimble
#endif  // HWY_ONCE
