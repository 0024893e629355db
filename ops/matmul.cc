// Products by output rows; one dot product at a time.
#include "ops/matmul.h"

#include <algorithm>
#include <cmath>

#include "ops/check.h"
#include "ops/parallel.h"

namespace thimble {
namespace {

constexpr int64_t kChunk = kMatMulInnerBlock;

float Rounded(float value, Compute compute) {
  return compute == Compute::kBF16 ? BF16ToFloat(FloatToBF16(value)) : value;
}

void Store(float sum, const MatMulOptions& options, bool first, float* y) {
  *y = first && !options.accumulate ? options.scale * sum : std::fma(options.scale, sum, *y);
}

}  // namespace

int64_t MatMulScratchBytes() { return NumThreads() * kChunk * static_cast<int64_t>(sizeof(float)); }

void MatMulNT(ConstMatrix x, const WeightView& w, Matrix y, const MatMulOptions& options, Scratch scratch) {
  CHECK_EQ(x.cols, w.cols);
  CHECK_EQ(x.rows, y.rows);
  CHECK_EQ(w.rows, y.cols);
  CHECK_GE(scratch.bytes, MatMulScratchBytes());
  ParallelFor(w.rows, [&](int64_t n, int thread) {
    float* values = static_cast<float*>(scratch.data) + thread * kChunk;
    for (int64_t k = 0; k < std::max<int64_t>(w.cols, 1); k += kChunk) {
      const int64_t count = std::min(kChunk, w.cols - k);
      DecodeRow(w, n, k, count, values);
      for (int64_t m = 0; m < x.rows; ++m) {
        float sum = 0;
        for (int64_t i = 0; i < count; ++i) {
          sum = std::fma(Rounded(x(m, k + i), options.compute), Rounded(values[i], options.compute), sum);
        }
        Store(sum, options, k == 0, &y(m, n));
      }
    }
  });
}

void MatMulNN(ConstMatrix dy, const WeightView& w, Matrix dx, const MatMulOptions& options, Scratch scratch) {
  CHECK_EQ(dy.cols, w.rows);
  CHECK_EQ(dy.rows, dx.rows);
  CHECK_EQ(w.cols, dx.cols);
  CHECK_GE(scratch.bytes, MatMulScratchBytes());
  if (!options.accumulate) {
    for (int64_t m = 0; m < dx.rows; ++m) std::fill_n(dx.row(m), dx.cols, 0.0f);
  }
  const int64_t chunks = (dx.cols + kChunk - 1) / kChunk;
  ParallelFor(chunks, [&](int64_t chunk, int thread) {
    float* values = static_cast<float*>(scratch.data) + thread * kChunk;
    const int64_t begin = chunk * kChunk;
    const int64_t count = std::min(kChunk, dx.cols - begin);
    for (int64_t n = 0; n < w.rows; ++n) {
      DecodeRow(w, n, begin, count, values);
      for (int64_t m = 0; m < dy.rows; ++m) {
        const float factor = options.scale * Rounded(dy(m, n), options.compute);
        float* out = dx.row(m) + begin;
        for (int64_t i = 0; i < count; ++i) out[i] = std::fma(factor, Rounded(values[i], options.compute), out[i]);
      }
    }
  });
}

void MatMulTN(ConstMatrix dy, ConstMatrix x, Matrix dw, const MatMulOptions& options, Scratch scratch) {
  CHECK_EQ(dy.rows, x.rows);
  CHECK_EQ(dy.cols, dw.rows);
  CHECK_EQ(x.cols, dw.cols);
  CHECK_GE(scratch.bytes, MatMulScratchBytes());
  ParallelFor(dw.rows, [&](int64_t n, int) {
    float* out = dw.row(n);
    if (!options.accumulate) std::fill_n(out, dw.cols, 0.0f);
    for (int64_t m = 0; m < dy.rows; ++m) {
      const float factor = options.scale * Rounded(dy(m, n), options.compute);
      const float* row = x.row(m);
      for (int64_t i = 0; i < dw.cols; ++i) out[i] = std::fma(factor, Rounded(row[i], options.compute), out[i]);
    }
  });
}

}  // namespace thimble
