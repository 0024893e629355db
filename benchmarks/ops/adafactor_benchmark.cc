// The Adafactor update of a matrix against plain loops; of_stream is the share of the machine's bandwidth.
#include <algorithm>
#include <cmath>
#include <vector>

#include "benchmarks/bandwidth.h"
#include "benchmarks/ops/op_data.h"
#include "ops/adafactor.h"

namespace thimble {
namespace {

constexpr AdafactorOptions kOptions = {.learning_rate = 1e-3, .weight_decay = 0.1};
// Four passes over the gradient, one over the parameter.
constexpr double kBytesPerElement = 4 * 4 + 8;

void NaiveUpdate(const BenchmarkMatrix& grad, BenchmarkMatrix& param) {
  const int64_t rows = grad.rows, cols = grad.cols;
  std::vector<double> row(rows, 1e-30), col(cols, 1e-30);
  double mean = 0, squares = 0;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const double u = static_cast<double>(grad.data[r * cols + c]) * grad.data[r * cols + c];
      row[r] += u / static_cast<double>(cols);
      col[c] += u / static_cast<double>(rows);
    }
    mean += row[r] / static_cast<double>(rows);
  }
  const auto update = [&](int64_t r, int64_t c) { return grad.data[r * cols + c] / std::sqrt(row[r] / mean * col[c]); };
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) squares += update(r, c) * update(r, c);
  }
  const double rate = 1e-3 / std::max(1.0, std::sqrt(squares / static_cast<double>(rows * cols)));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      float& p = param.data[r * cols + c];
      p = static_cast<float>(p * (1 - 1e-4) - rate * update(r, c));
    }
  }
}

void BM_AdafactorUpdate(benchmark::State& state) {
  BenchmarkMatrix grad(state.range(0), state.range(1)), param(grad.rows, grad.cols, 2), row(1, grad.rows),
      col(1, grad.cols);
  BenchmarkMatrix expected = param;
  std::vector<double> memory(AdafactorScratchBytes(grad.rows, grad.cols) / sizeof(double) + 8);
  const Scratch scratch = {memory.data(), static_cast<int64_t>(memory.size() * sizeof(double))};
  AdafactorUpdate(grad.view(), 1, kOptions, param.view(), row.vector(), col.vector(), scratch);
  NaiveUpdate(grad, expected);
  Verify(state, param.data, expected.data, 1e-5f);
  for (auto _ : state) AdafactorUpdate(grad.view(), 1, kOptions, param.view(), row.vector(), col.vector(), scratch);
  SetBandwidth(state, kBytesPerElement * static_cast<double>(grad.rows * grad.cols));
}
BENCHMARK(BM_AdafactorUpdate)->ArgNames({"rows", "cols"})->Args({4096, 2048})->UseRealTime();

void BM_AdafactorUpdateNaive(benchmark::State& state) {
  BenchmarkMatrix grad(state.range(0), state.range(1)), param(grad.rows, grad.cols, 2);
  for (auto _ : state) {
    NaiveUpdate(grad, param);
    benchmark::ClobberMemory();
  }
  SetBandwidth(state, kBytesPerElement * static_cast<double>(grad.rows * grad.cols));
}
BENCHMARK(BM_AdafactorUpdateNaive)->ArgNames({"rows", "cols"})->Args({4096, 2048})->UseRealTime();

}  // namespace
}  // namespace thimble
BENCHMARK_MAIN();
