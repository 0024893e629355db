#include "ops/embedding.h"

#include <algorithm>
#include <cstdint>

#include "ops/check.h"
#include "ops/parallel.h"
#include "ops/row_split.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/embedding.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Behind foreach_target.h, which includes this file once a level.
#include "hwy/highway.h"
#include "ops/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {
namespace {

void Accumulate(const float* x, int64_t n, float* y) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(hn::Add(hn::LoadU(d, y + i), hn::LoadU(d, x + i)), d, y + i);
  for (; i < n; ++i) y[i] += x[i];
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace thimble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thimble {
namespace {

HWY_EXPORT(Accumulate);

void CheckIds(ConstInts ids, int64_t rows) {
  for (int64_t t = 0; t < ids.size; ++t) {
    CHECK(ids[t] >= 0 && ids[t] < rows) << "token " << t << " has id " << ids[t] << ", the table " << rows << " rows";
  }
}

}  // namespace

void EmbeddingForward(ConstInts ids, const WeightView& table, Matrix y) {
  CHECK_EQ(ids.size, y.rows);
  CHECK_EQ(table.cols, y.cols);
  CheckIds(ids, table.rows);
  ParallelRows(y.rows, y.cols, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) DecodeRow(table, ids[t], 0, y.cols, y.row(t));
  });
}

void EmbeddingBackward(ConstInts ids, ConstMatrix dy, Matrix dtable) {
  CHECK_EQ(ids.size, dy.rows);
  CHECK_EQ(dtable.cols, dy.cols);
  CheckIds(ids, dtable.rows);
  // A task owns columns: two tasks never write one element, and every element sums its tokens in order.
  constexpr int64_t kLine = 16;  // a cache line, so that tasks share none where rows are aligned
  const int64_t lines = (dy.cols + kLine - 1) / kLine;
  const int64_t grain = std::max<int64_t>(4, kElementGrain / (kLine * std::max<int64_t>(dy.rows, 1)));
  ParallelRanges(lines, grain, [&](int64_t begin, int64_t end) {
    const int64_t col = begin * kLine;
    const int64_t n = std::min(end * kLine, dy.cols) - col;
    for (int64_t t = 0; t < dy.rows; ++t) {
      HWY_DYNAMIC_DISPATCH(Accumulate)(dy.row(t) + col, n, dtable.row(ids[t]) + col);
    }
  });
}

}  // namespace thimble
#endif  // HWY_ONCE
