// The sum of squares in double against a plain loop; of_stream is the share of the machine's bandwidth.
#include <cmath>

#include "benchmarks/bandwidth.h"
#include "benchmarks/ops/op_data.h"
#include "ops/grad_norm.h"

namespace thimble {
namespace {

double NaiveSum(const BenchmarkMatrix& x) {
  double sum = 0;
  for (const float v : x.data) sum += static_cast<double>(v) * v;
  return sum;
}

void BM_SumOfSquares(benchmark::State& state) {
  BenchmarkMatrix x(1, state.range(0));
  double sum = 0;
  for (auto _ : state) benchmark::DoNotOptimize(sum = SumOfSquares(x.vector()));
  if (!(std::abs(sum - NaiveSum(x)) < 1e-9 * sum)) state.SkipWithError("wrong sum");
  SetBandwidth(state, 4.0 * x.cols);
}
BENCHMARK(BM_SumOfSquares)->ArgName("size")->Arg(1 << 24)->UseRealTime();

void BM_SumOfSquaresNaive(benchmark::State& state) {
  BenchmarkMatrix x(1, state.range(0));
  for (auto _ : state) benchmark::DoNotOptimize(NaiveSum(x));
  SetBandwidth(state, 4.0 * x.cols);
}
BENCHMARK(BM_SumOfSquaresNaive)->ArgName("size")->Arg(1 << 24)->UseRealTime();

}  // namespace
}  // namespace thimble
BENCHMARK_MAIN();
