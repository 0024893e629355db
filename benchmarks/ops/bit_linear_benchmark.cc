// BitLinear's integer product at training shapes; of_fma is its rate over the f32 FMA peak measured in the same run.
#include <benchmark/benchmark.h>

#include <vector>

#include "benchmarks/ops/op_data.h"
#include "benchmarks/peak.h"
#include "ops/bit_linear.h"
#include "ops/parallel.h"
#include "ops/scratch_buffer.h"

namespace thimble {
namespace {

void BM_BitLinearForward(benchmark::State& state) {
  const int64_t rows = state.range(0), in = state.range(1), out = state.range(2);
  SetNumThreads(static_cast<int>(state.range(3)));
  BenchmarkMatrix x(rows, in), w(out, in, 2), y(rows, out, 3);
  std::vector<float> q(rows * Int8RowWords(in)), codes(out * TernaryRowWords(in)), scale(rows);
  const ScratchBuffer scratch(std::max(BitLinearScratchBytes(rows, in), TernarizeScratchBytes(out)));
  const Matrix q_view(q.data(), rows, Int8RowWords(in)), codes_view(codes.data(), out, TernaryRowWords(in));
  float gamma = 0;
  TernarizeWeight({w.data.data(), out, in}, codes_view, &gamma, scratch.view());
  const WeightView weight = TernaryView(codes_view, in, &gamma);
  for (auto _ : state) {
    QuantizeRowsInt8(x.view(), q_view, {scale.data(), rows});
    BitLinearForward(q_view, {scale.data(), rows}, weight, y.view(), scratch.view());
  }
  const double flops = 2.0 * static_cast<double>(rows * in * out);
  state.counters["GOPs"] = benchmark::Counter(flops * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["fma_peak"] = PeakF32Gflops();
}
BENCHMARK(BM_BitLinearForward)
    ->ArgNames({"rows", "in", "out", "threads"})
    ->ArgsProduct({{2048}, {2560}, {6912}, {1, 2}})
    ->ArgsProduct({{2048}, {256}, {768}, {1, 2}})
    ->UseRealTime();

void BM_TernarizeWeight(benchmark::State& state) {
  const int64_t out = state.range(0), in = state.range(1);
  BenchmarkMatrix w(out, in, 2);
  std::vector<float> codes(out * TernaryRowWords(in));
  const ScratchBuffer scratch(TernarizeScratchBytes(out));
  float gamma = 0;
  for (auto _ : state) {
    TernarizeWeight({w.data.data(), out, in}, {codes.data(), out, TernaryRowWords(in)}, &gamma, scratch.view());
  }
  state.SetBytesProcessed(state.iterations() * out * in * 4);
}
BENCHMARK(BM_TernarizeWeight)->ArgNames({"out", "in"})->Args({6912, 2560})->UseRealTime();

}  // namespace
}  // namespace thimble
BENCHMARK_MAIN();
