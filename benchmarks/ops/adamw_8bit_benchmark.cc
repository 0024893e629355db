// The AdamW update with 8-bit moments against a plain loop; of_stream is the share of the machine's bandwidth.
#include <algorithm>
#include <cmath>
#include <vector>

#include "benchmarks/bandwidth.h"
#include "benchmarks/ops/op_data.h"
#include "ops/adamw_8bit.h"
#include "ops/dynamic_map.h"

namespace thimble {
namespace {

constexpr AdamWOptions kOptions = {.learning_rate = 1e-3, .weight_decay = 0.1};
// Gradient read, parameter and codes read and written, absmax.
constexpr double kBytesPerElement = 4 + 8 + 4 + 16.0 / kMomentBlockSize;

struct State {
  explicit State(int64_t n) : m(n), v(n), m_absmax(MomentBlocks(n)), v_absmax(MomentBlocks(n)) {}
  Moments8Bit View() {
    return {m.data(), v.data(), {m_absmax.data(), std::ssize(m_absmax)}, {v_absmax.data(), std::ssize(v_absmax)}};
  }
  std::vector<uint8_t> m, v;
  std::vector<float> m_absmax, v_absmax;
};

void NaiveUpdate(const BenchmarkMatrix& grad, BenchmarkMatrix& param, State& state) {
  const int64_t n = grad.cols;
  for (int64_t block = 0; block < MomentBlocks(n); ++block) {
    const int64_t begin = block * kMomentBlockSize, end = std::min(n, begin + kMomentBlockSize);
    float m[kMomentBlockSize], v[kMomentBlockSize], m_max = 0, v_max = 0;
    for (int64_t i = begin; i < end; ++i) {
      const float g = grad.data[i];
      m[i - begin] = 0.9f * SignedDynamicMap()[state.m[i]] * state.m_absmax[block] + 0.1f * g;
      v[i - begin] = 0.999f * UnsignedDynamicMap()[state.v[i]] * state.v_absmax[block] + 0.001f * g * g;
      const float root = std::sqrt(v[i - begin] / 0.001f) + 1e-8f;
      param.data[i] = param.data[i] * (1 - 1e-4f) - 1e-3f * (m[i - begin] / 0.1f) / root;
      m_max = std::max(m_max, std::abs(m[i - begin]));
      v_max = std::max(v_max, v[i - begin]);
    }
    state.m_absmax[block] = m_max;
    state.v_absmax[block] = v_max;
    for (int64_t i = begin; i < end; ++i) {
      state.m[i] = SignedDynamicEncoder().Code(m[i - begin] / m_max);
      state.v[i] = UnsignedDynamicEncoder().Code(v[i - begin] / v_max);
    }
  }
}

void Update(BenchmarkMatrix& grad, BenchmarkMatrix& param, State& state) {
  AdamW8BitUpdate(grad.vector(), 1, kOptions, MomentRounding::kNearest, param.vector(), state.View());
}

void BM_AdamW8BitUpdate(benchmark::State& state) {
  BenchmarkMatrix grad(1, state.range(0)), param(1, grad.cols, 2);
  State moments(grad.cols), moments2(grad.cols);
  BenchmarkMatrix expected = param;
  Update(grad, param, moments);
  NaiveUpdate(grad, expected, moments2);
  Verify(state, param.data, expected.data, 1e-5f);
  for (auto _ : state) Update(grad, param, moments);
  SetBandwidth(state, kBytesPerElement * grad.cols);
}
BENCHMARK(BM_AdamW8BitUpdate)->ArgName("size")->Arg(1 << 23)->UseRealTime();

void BM_AdamW8BitUpdateNaive(benchmark::State& state) {
  BenchmarkMatrix grad(1, state.range(0)), param(1, grad.cols, 2);
  State moments(grad.cols);
  for (auto _ : state) {
    NaiveUpdate(grad, param, moments);
    benchmark::ClobberMemory();
  }
  SetBandwidth(state, kBytesPerElement * grad.cols);
}
BENCHMARK(BM_AdamW8BitUpdateNaive)->ArgName("size")->Arg(1 << 23)->UseRealTime();

}  // namespace
}  // namespace thimble
BENCHMARK_MAIN();
