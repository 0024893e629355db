// Element-wise kernels against a plain loop; of_stream is the share of the machine's bandwidth.
#include "benchmarks/bandwidth.h"
#include "benchmarks/ops/op_data.h"
#include "ops/elementwise.h"

namespace thimble {
namespace {

void BM_Add(benchmark::State& state) {
  BenchmarkMatrix a(state.range(0), state.range(1), 1), b(a.rows, a.cols, 2), y(a.rows, a.cols), expected = y;
  for (size_t i = 0; i < a.data.size(); ++i) expected.data[i] = a.data[i] + b.data[i];
  for (auto _ : state) Add(a.view(), b.view(), y.view());
  Verify(state, y.data, expected.data, 0);
  SetBandwidth(state, 12.0 * a.data.size());
}
BENCHMARK(BM_Add)->ArgNames({"rows", "cols"})->Args({16, 512})->Args({2048, 4096})->UseRealTime();

void BM_AddNaive(benchmark::State& state) {
  BenchmarkMatrix a(state.range(0), state.range(1), 1), b(a.rows, a.cols, 2), y(a.rows, a.cols);
  for (auto _ : state) {
    for (size_t i = 0; i < a.data.size(); ++i) y.data[i] = a.data[i] + b.data[i];
    benchmark::ClobberMemory();
  }
  SetBandwidth(state, 12.0 * a.data.size());
}
BENCHMARK(BM_AddNaive)->ArgNames({"rows", "cols"})->Args({16, 512})->Args({2048, 4096})->UseRealTime();

void BM_Scale(benchmark::State& state) {
  BenchmarkMatrix x(state.range(0), state.range(1)), y = x;
  for (auto _ : state) Scale(0.5f, x.view(), y.view());
  if (y.data[7] != 0.5f * x.data[7]) state.SkipWithError("wrong values");
  SetBandwidth(state, 8.0 * x.data.size());
}
BENCHMARK(BM_Scale)->ArgNames({"rows", "cols"})->Args({2048, 4096})->UseRealTime();

void BM_Fill(benchmark::State& state) {
  BenchmarkMatrix y(state.range(0), state.range(1));
  for (auto _ : state) Fill(3, y.view());
  if (y.data.back() != 3) state.SkipWithError("wrong values");
  SetBandwidth(state, 4.0 * y.data.size());
}
BENCHMARK(BM_Fill)->ArgNames({"rows", "cols"})->Args({2048, 4096})->UseRealTime();

}  // namespace
}  // namespace thimble
BENCHMARK_MAIN();
