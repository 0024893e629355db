// GPTQ of a square weight, and the Hessian of its inputs.
#include <vector>

#include "benchmark/benchmark.h"
#include "benchmarks/ops/values.h"
#include "ops/gptq.h"
#include "ops/quantize_scaled.h"

namespace thimble {
namespace {

void BM_Hessian(benchmark::State& state) {
  const int64_t cols = state.range(0), tokens = 512;
  const std::vector<float> x = Values(tokens * cols);
  std::vector<double> h(cols * cols, 0);
  for (auto _ : state) AccumulateHessian({x.data(), tokens, cols, cols}, &h);
  state.SetItemsProcessed(state.iterations() * tokens);
}
BENCHMARK(BM_Hessian)->Arg(576)->UseRealTime();

void BM_Gptq(benchmark::State& state) {
  const int64_t cols = state.range(0), tokens = 2 * cols;
  const std::vector<float> x = Values(tokens * cols), values = Values(cols * cols);
  std::vector<double> h(cols * cols, 0);
  AccumulateHessian({x.data(), tokens, cols, cols}, &h);
  QuantizedWeight w = MakeScaledWeight(Format::kInt4, cols, cols, 32);
  QuantizeScaledRows({values.data(), cols * cols}, 0, &w);
  for (auto _ : state) {
    const GptqOrder order(h, cols, {});
    if (!order.ok()) state.SkipWithError("not positive definite");
    order.Quantize({values.data(), cols, cols, cols}, &w);
  }
  state.SetItemsProcessed(state.iterations() * cols * cols);
}
BENCHMARK(BM_Gptq)->Arg(576)->UseRealTime();

}  // namespace
}  // namespace thimble

BENCHMARK_MAIN();
