#include "ops/apollo.h"

#include <algorithm>
#include <cmath>

#include "ops/check.h"
#include "ops/matmul.h"
#include "ops/parallel.h"
#include "ops/random.h"
#include "ops/scaled_gradient.h"
#include "ops/scratch_carver.h"

namespace thimble {
namespace {

constexpr double kNormGrowth = 1.01;
constexpr double kLeastNorm = 1e-8;

bool ChannelsAreRows(int64_t rows, int64_t cols) { return rows >= cols; }

struct Buffers {
  Buffers(ScratchCarver carver, int64_t rows, int64_t cols, int64_t rank)
      : projected(carver.Take<float>(std::max(rows, cols) * rank)),
        factors(carver.Take<float>(std::max(rows, cols))),
        row_sums(carver.Take<double>(rows)),
        matmul_bytes(MatMulScratchBytes()),
        matmul(carver.Take<char>(matmul_bytes)),
        bytes(carver.used()) {}
  float* projected;
  float* factors;
  double* row_sums;
  int64_t matmul_bytes;
  char* matmul;
  int64_t bytes;
};

void Project(ConstMatrix grad, float grad_scale, const float* projection, int64_t rank, const Buffers& buffers) {
  const MatMulOptions matmul = {.scale = grad_scale};
  const Scratch scratch = {buffers.matmul, buffers.matmul_bytes};
  if (ChannelsAreRows(grad.rows, grad.cols)) {
    const WeightView weight(projection, rank, grad.cols);
    MatMulNT(grad, weight, {buffers.projected, grad.rows, rank}, matmul, scratch);
  } else {
    const ConstMatrix left(projection, grad.rows, rank);
    MatMulTN(left, grad, {buffers.projected, rank, grad.cols}, matmul, scratch);
  }
}

// Updates the moments of one channel, `count` values `stride` apart, and returns the factor of its gradient.
float ChannelFactor(const ApolloOptions& options, const float* projected, int64_t count, int64_t stride, float* m,
                    float* v) {
  const float one_minus_beta1 = static_cast<float>(1 - options.beta1);
  const float beta2 = static_cast<float>(options.beta2);
  const float one_minus_beta2 = static_cast<float>(1 - options.beta2);
  const float eps = static_cast<float>(options.eps);
  double squares = 0, normalised_squares = 0;
  for (int64_t k = 0; k < count; ++k) {
    const int64_t i = k * stride;
    const float r = projected[i];
    m[i] += one_minus_beta1 * (r - m[i]);
    v[i] = beta2 * v[i] + one_minus_beta2 * r * r;
    const double normalised = m[i] / (std::sqrt(v[i]) + eps);
    squares += static_cast<double>(r) * r;
    normalised_squares += normalised * normalised;
  }
  return static_cast<float>(std::sqrt(normalised_squares) / (std::sqrt(squares) + kLeastNorm));
}

// The factor that holds the update's growth, with `last_norm` set anew.
double LimitGrowth(double norm, Vector last_norm) {
  const double last = last_norm[0];
  double factor = 1;
  if (last > 0) factor = kNormGrowth / std::max(norm / (last + kLeastNorm), kNormGrowth);
  last_norm[0] = static_cast<float>(norm * factor);
  return factor;
}

}  // namespace

int64_t ApolloMomentSize(int64_t rows, int64_t cols, int64_t rank) { return std::max(rows, cols) * rank; }

int64_t ApolloScratchBytes(int64_t rows, int64_t cols, int64_t rank) {
  return Buffers(ScratchCarver(), rows, cols, rank).bytes;
}

int64_t ApolloProjectionSize(int64_t rows, int64_t cols, int64_t rank) { return std::min(rows, cols) * rank; }

void ApolloProjection(const ApolloOptions& options, int64_t rows, int64_t cols, Vector projection) {
  CHECK_EQ(projection.size, ApolloProjectionSize(rows, cols, options.rank));
  constexpr uint64_t kPurpose = 0x41504f4c4c4f;  // apart from other uses of the seed
  const uint64_t epoch = static_cast<uint64_t>((options.step - 1) / options.projection_steps);
  const uint64_t stream = epoch << 32 | options.stream;
  const float stddev = static_cast<float>(1 / std::sqrt(static_cast<double>(options.rank)));
  // A value depends on its index alone; a multiple of four keeps the generator's blocks whole.
  constexpr int64_t kPiece = 4096;
  const int64_t count = projection.size;
  ParallelFor((count + kPiece - 1) / kPiece, [&](int64_t piece, int) {
    const int64_t first = piece * kPiece;
    RandomNormal(options.seed ^ kPurpose, stream, static_cast<uint64_t>(first), 0, stddev,
                 {projection.data + first, std::min(kPiece, count - first)});
  });
}

void ApolloUpdate(ConstMatrix grad, float grad_scale, ConstVector projection, const ApolloOptions& options,
                  Matrix param, Vector m, Vector v, Vector last_norm, Scratch scratch) {
  CHECK_GE(options.step, 1);
  CHECK(grad.rows == param.rows && grad.cols == param.cols && last_norm.size == 1);
  CHECK(m.size == ApolloMomentSize(grad.rows, grad.cols, options.rank) && v.size == m.size);
  CHECK_EQ(projection.size, ApolloProjectionSize(grad.rows, grad.cols, options.rank));
  if (grad.rows == 0 || grad.cols == 0) return;
  const Buffers buffers(ScratchCarver(scratch), grad.rows, grad.cols, options.rank);
  Project(grad, grad_scale, projection.data, options.rank, buffers);
  const bool by_row = ChannelsAreRows(grad.rows, grad.cols);
  const int64_t channels = by_row ? grad.rows : grad.cols;
  const int64_t first_step = by_row ? options.rank : 1;
  const int64_t stride = by_row ? 1 : grad.cols;
  ParallelRanges(channels, 64, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const int64_t first = c * first_step;
      buffers.factors[c] = grad_scale * ChannelFactor(options, buffers.projected + first, options.rank, stride,
                                                      m.data + first, v.data + first);
    }
  });

  const float* row = by_row ? buffers.factors : nullptr;
  const float* col = by_row ? nullptr : buffers.factors;
  ScaledRowSquares(grad, row, col, buffers.row_sums);
  double squares = 0;
  for (int64_t r = 0; r < grad.rows; ++r) squares += buffers.row_sums[r];
  const double step = static_cast<double>(options.step);
  const double correction = std::sqrt(1 - std::pow(options.beta2, step)) / (1 - std::pow(options.beta1, step));
  const double decay = 1 - options.learning_rate * options.weight_decay;
  const double rate = options.learning_rate * correction * std::sqrt(options.scale) *
                      LimitGrowth(std::sqrt(squares), last_norm) * decay;
  for (int64_t c = 0; c < channels; ++c) buffers.factors[c] = static_cast<float>(rate * buffers.factors[c]);
  ApplyScaledGradient(grad, row, col, static_cast<float>(decay), param);
}

}  // namespace thimble
