// Rounding activations; of_stream is the share of the machine's bandwidth.
#include "benchmarks/bandwidth.h"
#include "benchmarks/ops/op_data.h"
#include "ops/round_tokens.h"

namespace thimble {
namespace {

void BM_RoundTokens(benchmark::State& state) {
  const auto grid = static_cast<ActivationGrid>(state.range(2));
  BenchmarkMatrix x(state.range(0), state.range(1)), y(x.rows, x.cols, 2);
  RoundTokens(x.view(), grid, y.view());
  Verify(state, y.data, x.data, 0.1f);
  for (auto _ : state) RoundTokens(x.view(), grid, y.view());
  SetBandwidth(state, 8.0 * y.data.size());
}
BENCHMARK(BM_RoundTokens)
    ->ArgNames({"rows", "cols", "grid"})
    ->Args({2048, 4096, 1})
    ->Args({2048, 4096, 2})
    ->UseRealTime();

}  // namespace
}  // namespace thimble
BENCHMARK_MAIN();
