#include "ops/gptq.h"

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <numeric>

#include "ops/check.h"
#include "ops/parallel.h"

namespace thimble {
namespace {

using DoubleMatrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using FloatMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using FloatMap = Eigen::Map<const FloatMatrix, 0, Eigen::OuterStride<>>;

// Columns whose errors are carried on together, and rows that a thread takes at a time.
constexpr int64_t kColumns = 128;
constexpr int64_t kRows = 16;
// Of a Hessian's triangle that one task sums.
constexpr int64_t kHessianRows = 64;

// The codes of a format in the order of their values, so that the nearest is found by bisection.
struct Grid {
  std::vector<float> values;
  std::vector<uint8_t> codes;

  explicit Grid(Format format) {
    const float* book = Codebook(format);
    const int count = HasNibbles(format) ? 16 : 256;
    std::vector<int> order;
    for (int code = 0; code < count; ++code) {
      if (std::isfinite(book[code])) order.push_back(code);
    }
    std::stable_sort(order.begin(), order.end(), [book](int a, int b) { return book[a] < book[b]; });
    for (const int code : order) {
      values.push_back(book[code]);
      codes.push_back(static_cast<uint8_t>(code));
    }
  }
  // Position of the nearest value, the lower one of two equally near.
  size_t Nearest(float x) const {
    const size_t above = std::lower_bound(values.begin(), values.end(), x) - values.begin();
    if (above == 0) return 0;
    if (above == values.size()) return above - 1;
    return x - values[above - 1] <= values[above] - x ? above - 1 : above;
  }
};

// Some rows of a weight while their codes are chosen.
class RowsInWork {
 public:
  RowsInWork(const Grid& grid, const std::vector<int64_t>& order, const std::vector<float>& factor,
             const std::vector<char>& unused, QuantizedWeight* w)
      : grid_(grid), order_(order), factor_(factor), unused_(unused), w_(*w), view_(w->View()) {}

  void Run(ConstMatrix values, int64_t first, int64_t rows) {
    const int64_t cols = w_.cols;
    rows_.resize(rows, cols);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < cols; ++i) rows_(r, i) = unused_[order_[i]] ? 0 : values(first + r, order_[i]);
    }
    for (int64_t begin = 0; begin < cols; begin += kColumns) {
      const int64_t count = std::min(kColumns, cols - begin);
      errors_.resize(rows, count);
      for (int64_t r = 0; r < rows; ++r) ChooseInBlock(first + r, r, begin, count);
      const int64_t rest = cols - begin - count;
      if (rest == 0) continue;
      const FloatMap carry(factor_.data() + begin * cols + begin + count, count, rest, Eigen::OuterStride<>(cols));
      rows_.rightCols(rest).noalias() -= errors_ * carry;
    }
  }

 private:
  void ChooseInBlock(int64_t row, int64_t r, int64_t begin, int64_t count) {
    const int64_t cols = w_.cols;
    for (int64_t i = begin; i < begin + count; ++i) {
      const float x = rows_(r, i);
      const int64_t at = row * cols + order_[i];
      const float scale = BlockAbsmax(view_, at / w_.block_size);
      const size_t nearest = grid_.Nearest(scale == 0 ? 0 : x / scale);
      Store(at, grid_.codes[nearest]);
      const float* factors = factor_.data() + i * cols;
      const float error = (x - grid_.values[nearest] * scale) / factors[i];
      errors_(r, i - begin) = error;
      for (int64_t j = i + 1; j < begin + count; ++j) rows_(r, j) -= error * factors[j];
    }
  }

  void Store(int64_t at, uint8_t code) {
    if (!HasNibbles(w_.format)) {
      w_.codes[at] = code;
      return;
    }
    uint8_t& pair = w_.codes[at / 2];
    pair = static_cast<uint8_t>(at % 2 == 0 ? (pair & 15) | code << 4 : (pair & 0xf0) | code);
  }

  const Grid& grid_;
  const std::vector<int64_t>& order_;
  const std::vector<float>& factor_;
  const std::vector<char>& unused_;
  QuantizedWeight& w_;
  const WeightView view_;
  FloatMatrix rows_, errors_;
};

}  // namespace

void AccumulateHessian(ConstMatrix x, std::vector<double>* h) {
  const int64_t cols = x.cols;
  CHECK_EQ(static_cast<int64_t>(h->size()), cols * cols);
  const FloatMap inputs(x.data, x.rows, cols, Eigen::OuterStride<>(x.stride));
  Eigen::Map<DoubleMatrix> sums(h->data(), cols, cols);
  const int64_t tasks = (cols + kHessianRows - 1) / kHessianRows;
  ParallelRanges(tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task * kHessianRows, count = std::min(kHessianRows, cols - first);
      const FloatMatrix part = inputs.middleCols(first, count).transpose() * inputs.leftCols(first + count);
      sums.block(first, 0, count, first + count) += part.cast<double>();
    }
  });
}

GptqOrder::GptqOrder(const std::vector<double>& h, int64_t cols, const GptqOptions& options)
    : cols_(cols), order_(cols), unused_(cols, 0) {
  CHECK_EQ(static_cast<int64_t>(h.size()), cols * cols);
  double mean = 0;
  for (int64_t i = 0; i < cols; ++i) mean += h[i * cols + i] / static_cast<double>(cols);
  std::iota(order_.begin(), order_.end(), 0);
  if (options.act_order) {
    std::stable_sort(order_.begin(), order_.end(),
                     [&](int64_t a, int64_t b) { return h[a * cols + a] > h[b * cols + b]; });
  }
  DoubleMatrix ordered(cols, cols);
  for (int64_t i = 0; i < cols; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      const int64_t a = std::max(order_[i], order_[j]), b = std::min(order_[i], order_[j]);
      ordered(i, j) = h[a * cols + b];
    }
    const double diagonal = h[order_[i] * cols + order_[i]];
    unused_[order_[i]] = diagonal == 0;
    ordered(i, i) = (diagonal == 0 ? 1 : diagonal) + options.damping * mean;
  }
  const Eigen::LLT<DoubleMatrix, Eigen::Lower> first(ordered);
  if (first.info() != Eigen::Success) return;
  const DoubleMatrix inverse = first.solve(DoubleMatrix::Identity(cols, cols));
  const Eigen::LLT<DoubleMatrix, Eigen::Lower> second(inverse);
  if (second.info() != Eigen::Success) return;
  const DoubleMatrix upper = second.matrixU();
  factor_.resize(cols * cols);
  Eigen::Map<FloatMatrix>(factor_.data(), cols, cols) = upper.cast<float>();
  ok_ = Eigen::Map<const FloatMatrix>(factor_.data(), cols, cols).allFinite();
}

void GptqOrder::Quantize(ConstMatrix values, QuantizedWeight* w) const {
  CHECK(ok_);
  CHECK(HasScales(w->format) && w->offsets.empty() && w->column_blocks.empty());
  CHECK_EQ(w->cols, cols_);
  CHECK_EQ(values.rows, w->rows);
  CHECK(!HasNibbles(w->format) || cols_ % 2 == 0);  // threads share no byte
  const Grid grid(w->format);
  ParallelRanges((w->rows + kRows - 1) / kRows, 1, [&](int64_t begin, int64_t end) {
    RowsInWork work(grid, order_, factor_, unused_, w);
    for (int64_t task = begin; task < end; ++task) {
      work.Run(values, task * kRows, std::min(kRows, w->rows - task * kRows));
    }
  });
}

}  // namespace thimble
