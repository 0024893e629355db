#include "ops/bit_linear.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>

#include "ops/amx_panel.h"
#include "ops/bit_linear_kernel.h"
#include "ops/check.h"
#include "ops/parallel.h"
#include "ops/row_split.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/bit_linear.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Behind foreach_target.h, which includes this file once a level.
#include "hwy/highway.h"
#include "ops/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {
namespace {

// Rounds to the nearest integer, half to even, for |v| below 2^22.
template <class D>
HWY_INLINE hn::Vec<D> RoundEven(D d, hn::Vec<D> v) {
  const auto magic = hn::Set(d, 12582912.0f);  // 1.5 * 2^23
  return hn::Sub(hn::Add(v, magic), magic);
}

struct Magnitude {
  const float* x;
  hn::Vec<F32> operator()(F32 d, int64_t i) const { return hn::Abs(hn::LoadU(d, x + i)); }
  float At(int64_t i) const { return std::abs(x[i]); }
};

double SumOfMagnitudes(const float* x, int64_t n) { return SumInBlocks(F32(), n, Magnitude{x}); }

float LargestMagnitude(const float* x, int64_t n) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  auto most = hn::Zero(d);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) most = hn::Max(most, hn::Abs(hn::LoadU(d, x + i)));
  float result = hn::GetLane(hn::MaxOfLanes(d, most));
  for (; i < n; ++i) result = std::max(result, std::abs(x[i]));
  return result;
}

// q[i] = round(x[i] * scale) within [-limit, limit].
void RoundToInt8(const float* x, int64_t n, float scale, float limit, int8_t* q) {
  const F32 d;
  const hn::RebindToSigned<F32> di;
  const hn::Rebind<int8_t, F32> d8;
  const int64_t lanes = hn::Lanes(d);
  const auto high = hn::Set(d, limit), low = hn::Set(d, -limit), factor = hn::Set(d, scale);
  const auto rounded = [&](hn::Vec<F32> v) HWY_ATTR {
    return hn::ConvertTo(di, RoundEven(d, hn::Min(hn::Max(hn::Mul(v, factor), low), high)));
  };
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(hn::DemoteTo(d8, rounded(hn::LoadU(d, x + i))), d8, q + i);
  if (i == n) return;
  alignas(64) int32_t last[hn::MaxLanes(F32())];
  hn::Store(rounded(LoadPart(d, x + i, n - i)), di, last);
  for (int64_t k = 0; i + k < n; ++k) q[i + k] = static_cast<int8_t>(last[k]);
}

void DequantizeRow(const int8_t* q, int64_t n, float scale, float* x) {
  const F32 d;
  const hn::RebindToSigned<F32> di;
  const hn::Rebind<int8_t, F32> d8;
  const int64_t lanes = hn::Lanes(d);
  const auto divisor = hn::Set(d, scale);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto value = hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(d8, q + i)));
    hn::StoreU(hn::Div(value, divisor), d, x + i);
  }
  for (; i < n; ++i) x[i] = static_cast<float>(q[i]) / scale;
}

// y[c] = (sums[c] - offset) * factor.
void ScaleSums(const int32_t* sums, int32_t offset, float factor, int64_t n, float* y) {
  const F32 d;
  const hn::RebindToSigned<F32> di;
  const int64_t lanes = hn::Lanes(d);
  const auto less = hn::Set(di, offset);
  const auto vf = hn::Set(d, factor);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    hn::StoreU(hn::Mul(hn::ConvertTo(d, hn::Sub(hn::LoadU(di, sums + i), less)), vf), d, y + i);
  }
  for (; i < n; ++i) y[i] = static_cast<float>(sums[i] - offset) * factor;
}

int32_t SumOfInt8(const int8_t* q, int64_t n) {
  int32_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += q[i];
  return sum;
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace thimble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thimble {
namespace {

HWY_EXPORT(SumOfMagnitudes);
HWY_EXPORT(LargestMagnitude);
HWY_EXPORT(RoundToInt8);
HWY_EXPORT(DequantizeRow);
HWY_EXPORT(ScaleSums);
HWY_EXPORT(SumOfInt8);

constexpr int64_t kPadding = 64;
constexpr int64_t kPiece = 1024;  // values of a weight that are decoded at a time; a multiple of kPadding
constexpr float kLeastScale = 1e-5f;

int64_t Padded(int64_t cols) { return (cols + kPadding - 1) / kPadding * kPadding; }

// Calls use(first column, values, count) on consecutive pieces of a row.
template <typename Use>
void ForPieces(const WeightView& w, int64_t row, const Use& use) {
  alignas(64) float piece[kPiece];
  for (int64_t col = 0; col < w.cols; col += kPiece) {
    const int64_t count = std::min(kPiece, w.cols - col);
    DecodeRow(w, row, col, count, piece);
    use(col, piece, count);
  }
}

// The codes of a piece that begins on a chunk: 16 bytes for each 64 values.
void PackCodes(const int8_t* ternary, int64_t count, uint8_t* codes) {
  for (int64_t chunk = 0; chunk < count; chunk += kPadding, codes += 16) {
    for (int64_t j = 0; j < 16; ++j) {
      // Sums, which compilers vectorise, in place of shifts of bytes: 4 (4 (4 d + c) + b) + a, of values plus 1 each.
      uint8_t byte = 0;
      for (int64_t part = 3; part >= 0; --part) {
        byte = static_cast<uint8_t>(byte + byte);
        byte = static_cast<uint8_t>(byte + byte);
        byte = static_cast<uint8_t>(byte + ternary[chunk + part * 16 + j] + 1);
      }
      codes[j] = byte;
    }
  }
}

struct Product {
  ConstMatrix q;
  ConstVector scale;
  const WeightView& w;
  Matrix y;
  const int32_t* row_sums;  // of q
  int64_t depth() const { return Padded(w.cols); }
};

// Rows [row, row + count) times a packed panel of columns from `col` on.
void MultiplyRows(const Product& p, TernaryMultiply multiply, const uint8_t* panel, int64_t row, int64_t count,
                  int64_t col) {
  alignas(64) int32_t sums[kTernaryRows * kTernaryPanel];
  const int64_t stride = p.q.stride * 4, columns = std::min(kTernaryPanel, p.w.rows - col);
  multiply(reinterpret_cast<const int8_t*>(p.q.row(row)), stride, count, panel, p.depth(), sums);
  for (int64_t r = 0; r < count; ++r) {
    // Codes are the weights plus 1.
    HWY_DYNAMIC_DISPATCH(ScaleSums)
    (sums + r * kTernaryPanel, p.row_sums[row + r], *p.w.absmax / p.scale[row + r], columns, p.y.row(row + r) + col);
  }
}

// A weight's rows one at a time, as they are stored: with few rows of inputs, unpacking panels would cost more than it
// gains, and memory's rate is the limit.
void MultiplyStored(const Product& p) {
  const int64_t stride = p.q.stride * 4, row_bytes = TernaryRowWords(p.w.cols) * 4;
  const TernaryRowMultiply multiply = ActiveTernaryRowMultiply();
  ParallelRows(p.w.rows, p.depth() * p.q.rows, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      int32_t sums[kTernaryFewRows];
      multiply(reinterpret_cast<const int8_t*>(p.q.data), stride, p.q.rows,
               static_cast<const uint8_t*>(p.w.data) + o * row_bytes, p.depth(), sums);
      for (int64_t r = 0; r < p.q.rows; ++r) {
        const float factor = *p.w.absmax / p.scale[r];
        p.y(r, o) = static_cast<float>(sums[r] - p.row_sums[r]) * factor;
      }
    }
  });
}

}  // namespace

int64_t Int8RowWords(int64_t cols) { return Padded(cols) / 4; }
int64_t TernaryRowWords(int64_t cols) { return Padded(cols) / 16; }

void QuantizeRowsInt8(ConstMatrix x, Matrix q, Vector scale) {
  CHECK(q.rows == x.rows && q.cols == Int8RowWords(x.cols) && scale.size == x.rows);
  ParallelRows(x.rows, x.cols, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float most = HWY_DYNAMIC_DISPATCH(LargestMagnitude)(x.row(r), x.cols);
      scale[r] = 127.0f / std::max(most, kLeastScale);
      int8_t* out = reinterpret_cast<int8_t*>(q.row(r));
      HWY_DYNAMIC_DISPATCH(RoundToInt8)(x.row(r), x.cols, scale[r], 127.0f, out);
      std::memset(out + x.cols, 0, static_cast<size_t>(Padded(x.cols) - x.cols));
    }
  });
}

void DequantizeRowsInt8(ConstMatrix q, ConstVector scale, Matrix x) {
  CHECK(q.rows == x.rows && q.cols == Int8RowWords(x.cols) && scale.size == x.rows);
  ParallelRows(x.rows, x.cols, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      HWY_DYNAMIC_DISPATCH(DequantizeRow)(reinterpret_cast<const int8_t*>(q.row(r)), x.cols, scale[r], x.row(r));
    }
  });
}

int64_t TernarizeScratchBytes(int64_t rows) { return rows * static_cast<int64_t>(sizeof(double)); }

void TernarizeWeight(const WeightView& w, Matrix codes, float* gamma, Scratch scratch) {
  CHECK(codes.rows == w.rows && codes.cols == TernaryRowWords(w.cols));
  CHECK_GE(scratch.bytes, TernarizeScratchBytes(w.rows));
  double* sums = static_cast<double*>(scratch.data);
  ParallelRows(w.rows, w.cols, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      sums[r] = 0;
      ForPieces(w, r, [&](int64_t, const float* values, int64_t count) {
        sums[r] += HWY_DYNAMIC_DISPATCH(SumOfMagnitudes)(values, count);
      });
    }
  });
  double sum = 0;
  for (int64_t r = 0; r < w.rows; ++r) sum += sums[r];
  const double values = static_cast<double>(std::max<int64_t>(1, w.rows * w.cols));
  *gamma = std::max(static_cast<float>(sum / values), kLeastScale);
  const float inverse = 1.0f / *gamma;
  ParallelRows(w.rows, w.cols, [&](int64_t begin, int64_t end) {
    alignas(64) int8_t ternary[kPiece];
    for (int64_t r = begin; r < end; ++r) {
      uint8_t* out = reinterpret_cast<uint8_t*>(codes.row(r));
      ForPieces(w, r, [&](int64_t col, const float* piece, int64_t count) {
        HWY_DYNAMIC_DISPATCH(RoundToInt8)(piece, count, inverse, 1.0f, ternary);
        std::memset(ternary + count, 0, static_cast<size_t>(Padded(count) - count));
        PackCodes(ternary, count, out + col / 4);
      });
    }
  });
}

void PackTernaryRow(const int8_t* values, int64_t cols, uint8_t* codes) {
  const int64_t whole = cols / kPadding * kPadding;
  PackCodes(values, whole, codes);
  if (whole == cols) return;
  int8_t last[kPadding] = {};
  std::memcpy(last, values + whole, static_cast<size_t>(cols - whole));
  PackCodes(last, kPadding, codes + whole / 4);
}

WeightView TernaryView(ConstMatrix codes, int64_t cols, const float* gamma) {
  CHECK_EQ(codes.stride, codes.cols);
  WeightView view;
  view.format = Format::kTernary;
  view.rows = codes.rows;
  view.cols = cols;
  view.data = codes.data;
  view.absmax = gamma;
  return view;
}

int64_t BitLinearScratchBytes(int64_t rows, int64_t cols) {
  return NumThreads() * kTernaryPanel * Padded(cols) + rows * static_cast<int64_t>(sizeof(int32_t));
}

void BitLinearForward(ConstMatrix q, ConstVector scale, const WeightView& w, Matrix y, Scratch scratch) {
  CHECK(w.format == Format::kTernary && q.cols == Int8RowWords(w.cols) && scale.size == q.rows);
  CHECK(y.rows == q.rows && y.cols == w.rows);
  CHECK_GE(scratch.bytes, BitLinearScratchBytes(q.rows, w.cols));
  uint8_t* panels = static_cast<uint8_t*>(scratch.data);
  int32_t* row_sums = reinterpret_cast<int32_t*>(panels + NumThreads() * kTernaryPanel * Padded(w.cols));
  ParallelRows(q.rows, w.cols, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      row_sums[r] = HWY_DYNAMIC_DISPATCH(SumOfInt8)(reinterpret_cast<const int8_t*>(q.row(r)), w.cols);
    }
  });
  const Product p = {q, scale, w, y, row_sums};
  if (q.rows <= kTernaryFewRows) return MultiplyStored(p);
  const TernaryMultiply multiply = ActiveTernaryMultiply();
  const bool use_tiles = TernaryUsesTiles();
  const int64_t row_bytes = TernaryRowWords(w.cols) * 4;
  ParallelFor((w.rows + kTernaryPanel - 1) / kTernaryPanel, [&](int64_t i, int thread) {
    std::optional<AmxScope> tiles;
    if (use_tiles) tiles.emplace();
    const int64_t col = i * kTernaryPanel;
    uint8_t* panel = panels + thread * kTernaryPanel * p.depth();
    PackTernaryPanel(static_cast<const uint8_t*>(w.data) + col * row_bytes, row_bytes,
                     std::min(kTernaryPanel, w.rows - col), p.depth(), panel);
    for (int64_t row = 0; row < q.rows; row += kTernaryRows) {
      MultiplyRows(p, multiply, panel, row, std::min(kTernaryRows, q.rows - row), col);
    }
  });
}

}  // namespace thimble
#endif  // HWY_ONCE
