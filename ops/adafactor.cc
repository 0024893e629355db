#include "ops/adafactor.h"

#include <algorithm>
#include <cmath>

#include "ops/check.h"
#include "ops/parallel.h"
#include "ops/row_split.h"
#include "ops/scaled_gradient.h"
#include "ops/scratch_carver.h"

namespace thimble {
namespace {

// Keeps the root of a moment that never saw a gradient above zero.
constexpr double kLeastSquare = 1e-30;

double BetaAt(int64_t step) {
  CHECK_GE(step, 1);
  return 1 - std::pow(static_cast<double>(step), -0.8);
}

struct Buffers {
  Buffers(ScratchCarver carver, int64_t rows, int64_t cols)
      : row_factor(carver.Take<float>(rows)),
        col_factor(carver.Take<float>(cols)),
        row_sums(carver.Take<double>(rows)),
        col_sums(carver.Take<double>(cols)),
        bytes(carver.used()) {}
  float* row_factor;
  float* col_factor;
  double* row_sums;
  double* col_sums;
  int64_t bytes;
};

// beta * moment + (1 - beta) * (sum / count + 1e-30)
void UpdateMean(const double* sums, int64_t count, double beta, Vector moment) {
  for (int64_t i = 0; i < moment.size; ++i) {
    const double mean = sums[i] / static_cast<double>(count) + kLeastSquare;
    moment[i] = static_cast<float>(beta * moment[i] + (1 - beta) * mean);
  }
}

// Multiplies the factors of the rows by the rate, after the update's root mean square is clipped, and applies them.
void ClipAndApply(ConstMatrix grad, const AdafactorOptions& options, float* row_factor, const float* col_factor,
                  double* row_sums, Matrix param) {
  ScaledRowSquares(grad, row_factor, col_factor, row_sums);
  double sum = 0;
  for (int64_t r = 0; r < grad.rows; ++r) sum += row_sums[r];
  const double rms = std::sqrt(sum / static_cast<double>(grad.rows * grad.cols));
  const double rate = options.learning_rate / std::max(1.0, rms / options.clip_threshold);
  for (int64_t r = 0; r < grad.rows; ++r) row_factor[r] = static_cast<float>(rate * row_factor[r]);
  const float decay = static_cast<float>(1 - options.learning_rate * options.weight_decay);
  ApplyScaledGradient(grad, row_factor, col_factor, decay, param);
}

}  // namespace

int64_t AdafactorScratchBytes(int64_t rows, int64_t cols) { return Buffers(ScratchCarver(), rows, cols).bytes; }

void AdafactorUpdate(ConstMatrix grad, float grad_scale, const AdafactorOptions& options, Matrix param, Vector row,
                     Vector col, Scratch scratch) {
  CHECK(grad.rows == param.rows && grad.cols == param.cols && row.size == grad.rows && col.size == grad.cols);
  if (grad.rows == 0 || grad.cols == 0) return;
  const Buffers buffers(ScratchCarver(scratch), grad.rows, grad.cols);
  const double beta = BetaAt(options.step);
  std::fill_n(buffers.row_factor, grad.rows, grad_scale);
  ScaledRowSquares(grad, buffers.row_factor, nullptr, buffers.row_sums);
  std::fill_n(buffers.col_sums, grad.cols, 0.0);
  AddColumnSquares(grad, grad_scale, buffers.col_sums);
  UpdateMean(buffers.row_sums, grad.cols, beta, row);
  UpdateMean(buffers.col_sums, grad.rows, beta, col);
  double mean = 0;
  for (int64_t r = 0; r < grad.rows; ++r) mean += row[r];
  mean /= static_cast<double>(grad.rows);
  for (int64_t r = 0; r < grad.rows; ++r) {
    buffers.row_factor[r] = static_cast<float>(grad_scale / std::sqrt(row[r] / mean));
  }
  for (int64_t c = 0; c < grad.cols; ++c) buffers.col_factor[c] = static_cast<float>(1 / std::sqrt(double{col[c]}));
  ClipAndApply(grad, options, buffers.row_factor, buffers.col_factor, buffers.row_sums, param);
}

void AdafactorVectorUpdate(ConstVector grad, float grad_scale, const AdafactorOptions& options, Vector param, Vector v,
                           Scratch scratch) {
  CHECK(grad.size == param.size && v.size == grad.size);
  if (grad.size == 0) return;
  const Buffers buffers(ScratchCarver(scratch), 1, grad.size);
  const double beta = BetaAt(options.step);
  ParallelRanges(grad.size, kElementGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const double g = grad_scale * grad[i];
      v[i] = static_cast<float>(beta * v[i] + (1 - beta) * (g * g + kLeastSquare));
      buffers.col_factor[i] = static_cast<float>(1 / std::sqrt(double{v[i]}));
    }
  });
  buffers.row_factor[0] = grad_scale;
  ClipAndApply({grad.data, 1, grad.size}, options, buffers.row_factor, buffers.col_factor, buffers.row_sums,
               {param.data, 1, param.size});
}

}  // namespace thimble
