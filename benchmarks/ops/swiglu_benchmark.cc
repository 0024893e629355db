// SwiGLU against plain loops with std::exp; of_stream is the share of the machine's bandwidth.
#include <cmath>

#include "benchmarks/bandwidth.h"
#include "benchmarks/ops/op_data.h"
#include "ops/swiglu.h"

namespace thimble {
namespace {

void NaiveForward(const BenchmarkMatrix& gate, const BenchmarkMatrix& up, BenchmarkMatrix& y) {
  for (size_t i = 0; i < y.data.size(); ++i) y.data[i] = gate.data[i] / (1 + std::exp(-gate.data[i])) * up.data[i];
}

void BM_SwiGLUForward(benchmark::State& state) {
  BenchmarkMatrix gate(state.range(0), state.range(1)), up(gate.rows, gate.cols, 2), y = up, expected = up;
  NaiveForward(gate, up, expected);
  for (auto _ : state) SwiGLUForward(gate.view(), up.view(), y.view());
  Verify(state, y.data, expected.data, 1e-6f);
  SetBandwidth(state, 12.0 * y.data.size());
}
BENCHMARK(BM_SwiGLUForward)->ArgNames({"rows", "cols"})->Args({1024, 8192})->UseRealTime();

void BM_SwiGLUForwardNaive(benchmark::State& state) {
  BenchmarkMatrix gate(state.range(0), state.range(1)), up(gate.rows, gate.cols, 2), y = up;
  for (auto _ : state) {
    NaiveForward(gate, up, y);
    benchmark::ClobberMemory();
  }
  SetBandwidth(state, 12.0 * y.data.size());
}
BENCHMARK(BM_SwiGLUForwardNaive)->ArgNames({"rows", "cols"})->Args({1024, 8192})->UseRealTime();

void BM_SwiGLUBackward(benchmark::State& state) {
  BenchmarkMatrix gate(state.range(0), state.range(1)), up(gate.rows, gate.cols, 2), dy(gate.rows, gate.cols, 3),
      dgate = dy, dup = dy, expected = dy;
  for (size_t i = 0; i < dy.data.size(); ++i) {
    const double g = gate.data[i], s = 1 / (1 + std::exp(-g));
    expected.data[i] = static_cast<float>(dy.data[i] * up.data[i] * s * (1 + g * (1 - s)));
  }
  for (auto _ : state) SwiGLUBackward(gate.view(), up.view(), dy.view(), dgate.view(), dup.view());
  Verify(state, dgate.data, expected.data, 1e-6f);
  SetBandwidth(state, 20.0 * dy.data.size());
}
BENCHMARK(BM_SwiGLUBackward)->ArgNames({"rows", "cols"})->Args({1024, 8192})->UseRealTime();

}  // namespace
}  // namespace thimble
BENCHMARK_MAIN();
