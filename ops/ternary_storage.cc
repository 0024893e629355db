#include "ops/ternary_storage.h"

#include <algorithm>
#include <utility>

#include "ops/bit_linear.h"
#include "ops/check.h"

namespace thimble {
namespace {

constexpr int64_t kWordBytes = sizeof(float);

int64_t RowBytes(int64_t cols) { return TernaryRowWords(cols) * kWordBytes; }

QuantizedWeight Empty(int64_t rows, int64_t cols) {
  QuantizedWeight weight;
  weight.format = Format::kTernary;
  weight.rows = rows;
  weight.cols = cols;
  weight.codes.resize(static_cast<size_t>(rows * RowBytes(cols)));
  weight.absmax = {0.0f};
  return weight;
}

}  // namespace

int64_t TernaryBytes(int64_t rows, int64_t cols) { return rows * RowBytes(cols) + kWordBytes; }

QuantizedWeight QuantizeTernary(const WeightView& w) {
  QuantizedWeight weight = Empty(w.rows, w.cols);
  std::vector<double> scratch(static_cast<size_t>(w.rows));
  const Matrix codes(reinterpret_cast<float*>(weight.codes.data()), w.rows, TernaryRowWords(w.cols));
  TernarizeWeight(w, codes, weight.absmax.data(),
                  {scratch.data(), static_cast<int64_t>(scratch.size() * sizeof(double))});
  return weight;
}

TernaryPacker::TernaryPacker(int64_t rows, int64_t cols) : weight_(Empty(rows, cols)) {}

void TernaryPacker::PushRow(const int8_t* values) {
  CHECK_LT(row_, weight_.rows);
  PackTernaryRow(values, weight_.cols, weight_.codes.data() + row_++ * RowBytes(weight_.cols));
}

QuantizedWeight TernaryPacker::Finish(float scale) {
  CHECK_EQ(row_, weight_.rows);
  weight_.absmax = {scale};
  return std::move(weight_);
}

float MasterFactor(const WeightView& ternary) {
  std::vector<float> row(static_cast<size_t>(ternary.cols));
  int64_t others = 0;
  for (int64_t r = 0; r < ternary.rows; ++r) {
    DecodeRow(ternary, r, 0, ternary.cols, row.data());
    others += std::count_if(row.begin(), row.end(), [](float value) { return value != 0; });
  }
  if (others == 0) return 1;
  return static_cast<float>(static_cast<double>(ternary.rows * ternary.cols) / static_cast<double>(others));
}

}  // namespace thimble
