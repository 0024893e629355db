// The Lion update against a plain loop; of_stream is the share of the machine's bandwidth.
#include <cmath>

#include "benchmarks/bandwidth.h"
#include "benchmarks/ops/op_data.h"
#include "ops/lion.h"

namespace thimble {
namespace {

constexpr LionOptions kOptions = {.learning_rate = 1e-3, .weight_decay = 0.1};

void NaiveUpdate(const BenchmarkMatrix& grad, BenchmarkMatrix& param, BenchmarkMatrix& m) {
  for (size_t i = 0; i < param.data.size(); ++i) {
    const float g = grad.data[i];
    const float direction = 0.9f * m.data[i] + 0.1f * g;
    const float sign = direction > 0 ? 1.0f : direction < 0 ? -1.0f : 0.0f;
    param.data[i] = param.data[i] * (1 - 1e-4f) - 1e-3f * sign;
    m.data[i] = 0.99f * m.data[i] + 0.01f * g;
  }
}

void BM_LionUpdate(benchmark::State& state) {
  BenchmarkMatrix grad(1, state.range(0)), param(1, grad.cols, 2), m(1, grad.cols);
  BenchmarkMatrix expected = param, m2 = m;
  LionUpdate(grad.vector(), 1, kOptions, param.vector(), m.vector());
  NaiveUpdate(grad, expected, m2);
  Verify(state, m.data, m2.data, 1e-5f);
  for (auto _ : state) LionUpdate(grad.vector(), 1, kOptions, param.vector(), m.vector());
  SetBandwidth(state, 20.0 * grad.cols);
}
BENCHMARK(BM_LionUpdate)->ArgName("size")->Arg(1 << 23)->UseRealTime();

void BM_LionUpdateNaive(benchmark::State& state) {
  BenchmarkMatrix grad(1, state.range(0)), param(1, grad.cols, 2), m(1, grad.cols);
  for (auto _ : state) {
    NaiveUpdate(grad, param, m);
    benchmark::ClobberMemory();
  }
  SetBandwidth(state, 20.0 * grad.cols);
}
BENCHMARK(BM_LionUpdateNaive)->ArgName("size")->Arg(1 << 23)->UseRealTime();

}  // namespace
}  // namespace thimble
BENCHMARK_MAIN();
