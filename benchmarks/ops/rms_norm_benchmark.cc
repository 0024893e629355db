// RMSNorm forward and backward against plain loops; of_stream is the share of the machine's bandwidth.
#include <cmath>
#include <vector>

#include "benchmarks/bandwidth.h"
#include "benchmarks/ops/op_data.h"
#include "ops/rms_norm.h"

namespace thimble {
namespace {

constexpr float kEps = 1e-5f;

void NaiveForward(const BenchmarkMatrix& x, const BenchmarkMatrix& w, BenchmarkMatrix& y) {
  for (int64_t r = 0; r < x.rows; ++r) {
    const float* row = &x.data[r * x.cols];
    float squares = 0;
    for (int64_t c = 0; c < x.cols; ++c) squares += row[c] * row[c];
    const float rstd = 1 / std::sqrt(squares / x.cols + kEps);
    for (int64_t c = 0; c < x.cols; ++c) y.data[r * x.cols + c] = row[c] * rstd * w.data[c];
  }
}

void BM_RmsNormForward(benchmark::State& state) {
  BenchmarkMatrix x(state.range(0), state.range(1)), w(1, x.cols, 2), y(x.rows, x.cols), rstd(1, x.rows), expected = y;
  NaiveForward(x, w, expected);
  for (auto _ : state) RmsNormForward(x.view(), w.vector(), kEps, y.view(), rstd.vector());
  Verify(state, y.data, expected.data, 1e-4f);
  SetBandwidth(state, 8.0 * x.data.size());
}
BENCHMARK(BM_RmsNormForward)->ArgNames({"rows", "dim"})->Args({2048, 4096})->Args({65536, 128})->UseRealTime();

void BM_RmsNormForwardNaive(benchmark::State& state) {
  BenchmarkMatrix x(state.range(0), state.range(1)), w(1, x.cols, 2), y(x.rows, x.cols);
  for (auto _ : state) {
    NaiveForward(x, w, y);
    benchmark::ClobberMemory();
  }
  SetBandwidth(state, 8.0 * x.data.size());
}
BENCHMARK(BM_RmsNormForwardNaive)->ArgNames({"rows", "dim"})->Args({2048, 4096})->Args({65536, 128})->UseRealTime();

void BM_RmsNormBackward(benchmark::State& state) {
  BenchmarkMatrix x(state.range(0), state.range(1)), w(1, x.cols, 2), dy(x.rows, x.cols, 3), dx = dy, dw(1, x.cols),
                                                                                             rstd(1, x.rows);
  const bool frozen = state.range(2) != 0;
  RmsNormForward(x.view(), w.vector(), kEps, dx.view(), rstd.vector());
  std::vector<float> scratch(RmsNormScratchBytes(x.rows, x.cols) / sizeof(float));
  const auto run = [&] {
    RmsNormBackward(x.view(), w.vector(), rstd.vector(), dy.view(), dx.view(), frozen ? Vector() : dw.vector(),
                    {scratch.data(), static_cast<int64_t>(scratch.size() * sizeof(float))});
  };
  for (auto _ : state) run();
  // x is orthogonal to dx but for eps.
  double dot = 0;
  for (int64_t c = 0; c < x.cols; ++c) dot += static_cast<double>(x.data[c]) * dx.data[c];
  if (!(std::abs(dot) < 1e-2)) state.SkipWithError("wrong values");
  SetBandwidth(state, 12.0 * x.data.size());
}
BENCHMARK(BM_RmsNormBackward)
    ->ArgNames({"rows", "dim", "frozen"})
    ->Args({2048, 4096, 1})
    ->Args({2048, 4096, 0})
    ->Args({65536, 128, 0})
    ->UseRealTime();

}  // namespace
}  // namespace thimble
BENCHMARK_MAIN();
