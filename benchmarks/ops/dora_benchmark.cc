// DoRA's norm and its scaling; of_stream is the share of the machine's bandwidth.
#include <cmath>
#include <cstdint>
#include <vector>

#include "benchmarks/bandwidth.h"
#include "benchmarks/ops/op_data.h"
#include "ops/dora.h"

namespace thimble {
namespace {

void BM_DoraNorm(benchmark::State& state) {
  const int64_t out = state.range(0), in = state.range(1), rank = state.range(2);
  BenchmarkMatrix w(out, in, 1), a(rank, in, 2), b(out, rank, 3), norm(1, out);
  std::vector<float> scratch(DoraNormScratchBytes(in) / sizeof(float) + 16);
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(scratch.data()) + 63) / 64 * 64;
  const Scratch aligned = {reinterpret_cast<void*>(begin), DoraNormScratchBytes(in)};
  for (auto _ : state) DoraNorm({w.data.data(), out, in}, a.view(), b.view(), 2, norm.vector(), aligned);
  double squares = 0;
  for (int64_t i = 0; i < in; ++i) {
    double value = w.data[i];
    for (int64_t r = 0; r < rank; ++r) value += 2.0 * b.data[r] * a.data[r * in + i];
    squares += value * value;
  }
  if (!(std::abs(norm.data[0] - std::sqrt(squares)) < 1e-4 * norm.data[0])) state.SkipWithError("wrong norm");
  SetBandwidth(state, 4.0 * out * in);
}
BENCHMARK(BM_DoraNorm)->ArgNames({"out", "in", "rank"})->Args({2048, 2048, 16})->UseRealTime();

void BM_DoraForward(benchmark::State& state) {
  BenchmarkMatrix z(state.range(0), state.range(1)), y = z, m(1, z.cols, 2), norm(1, z.cols, 3);
  for (auto _ : state) DoraForward(m.vector(), norm.vector(), z.view(), y.view());
  if (!(std::abs(y.data[0] - z.data[0] * m.data[0] / norm.data[0]) <= 1e-5f)) state.SkipWithError("wrong values");
  SetBandwidth(state, 8.0 * z.data.size());
}
BENCHMARK(BM_DoraForward)->ArgNames({"tokens", "out"})->Args({2048, 4096})->UseRealTime();

void BM_DoraBackward(benchmark::State& state) {
  BenchmarkMatrix z(state.range(0), state.range(1)), dy = z, dz = z, m(1, z.cols, 2), norm(1, z.cols, 3), dm(1, z.cols);
  for (auto _ : state) DoraBackward(m.vector(), norm.vector(), z.view(), dy.view(), dz.view(), dm.vector());
  if (!(std::abs(dz.data[0] - dy.data[0] * m.data[0] / norm.data[0]) <= 1e-5f)) state.SkipWithError("wrong values");
  SetBandwidth(state, 16.0 * z.data.size());
}
BENCHMARK(BM_DoraBackward)->ArgNames({"tokens", "out"})->Args({2048, 4096})->UseRealTime();

}  // namespace
}  // namespace thimble
BENCHMARK_MAIN();
