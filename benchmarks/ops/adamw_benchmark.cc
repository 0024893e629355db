// The AdamW update against a plain loop; of_stream is the share of the machine's bandwidth.
#include <cmath>

#include "benchmarks/bandwidth.h"
#include "benchmarks/ops/op_data.h"
#include "ops/adamw.h"

namespace thimble {
namespace {

constexpr AdamWOptions kOptions = {.learning_rate = 1e-3, .weight_decay = 0.1};

void NaiveUpdate(const BenchmarkMatrix& grad, BenchmarkMatrix& param, BenchmarkMatrix& m, BenchmarkMatrix& v) {
  for (size_t i = 0; i < param.data.size(); ++i) {
    const float g = grad.data[i];
    m.data[i] += 0.1f * (g - m.data[i]);
    v.data[i] = 0.999f * v.data[i] + 0.001f * g * g;
    const float root = std::sqrt(v.data[i] / 0.001f) + 1e-8f;
    param.data[i] = param.data[i] * (1 - 1e-4f) - 1e-3f * (m.data[i] / 0.1f) / root;
  }
}

void BM_AdamWUpdate(benchmark::State& state) {
  BenchmarkMatrix grad(1, state.range(0)), param(1, grad.cols, 2), m(1, grad.cols), v(1, grad.cols);
  m.data.assign(grad.cols, 0);
  v.data.assign(grad.cols, 0);
  BenchmarkMatrix expected = param, m2 = m, v2 = v;
  AdamWUpdate(grad.vector(), 1, kOptions, param.vector(), m.vector(), v.vector());
  NaiveUpdate(grad, expected, m2, v2);
  Verify(state, param.data, expected.data, 1e-5f);
  for (auto _ : state) AdamWUpdate(grad.vector(), 1, kOptions, param.vector(), m.vector(), v.vector());
  SetBandwidth(state, 28.0 * grad.cols);
}
BENCHMARK(BM_AdamWUpdate)->ArgName("size")->Arg(1 << 23)->UseRealTime();

void BM_AdamWUpdateNaive(benchmark::State& state) {
  BenchmarkMatrix grad(1, state.range(0)), param(1, grad.cols, 2), m(1, grad.cols), v(1, grad.cols);
  v.data.assign(grad.cols, 0);
  for (auto _ : state) {
    NaiveUpdate(grad, param, m, v);
    benchmark::ClobberMemory();
  }
  SetBandwidth(state, 28.0 * grad.cols);
}
BENCHMARK(BM_AdamWUpdateNaive)->ArgName("size")->Arg(1 << 23)->UseRealTime();

}  // namespace
}  // namespace thimble
BENCHMARK_MAIN();
