// A LoRA branch beside its products alone; the share of dropout shows in dropout_percent:10.
#include <cstdint>
#include <vector>

#include "benchmark/benchmark.h"
#include "benchmarks/ops/op_data.h"
#include "ops/lora.h"

namespace thimble {
namespace {

struct Branch {
  BenchmarkMatrix x, a, b, dy, xa, y, dx, da, db;
  std::vector<float> scratch;
  LoraDropout dropout;

  explicit Branch(const benchmark::State& state)
      : x(state.range(0), state.range(1), 1),
        a(state.range(2), x.cols, 2),
        b(x.cols, a.rows, 3),
        dy(x.rows, x.cols, 4),
        xa(x.rows, a.rows),
        y(x.rows, x.cols),
        dx(x.rows, x.cols),
        da(a.rows, a.cols),
        db(b.rows, b.cols),
        scratch(LoraScratchBytes(Compute::kF32, x.rows, x.cols, x.cols, a.rows) / sizeof(float) + 16),
        dropout{.p = state.range(3) / 100.0f, .seed = 1, .counter = 2} {}
  Scratch Aligned() {
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(scratch.data()) + 63) / 64 * 64;
    return {reinterpret_cast<void*>(begin), LoraScratchBytes(Compute::kF32, x.rows, x.cols, x.cols, a.rows)};
  }
  void Forward() {
    LoraForward(x.view(), a.view(), b.view(), 2, dropout, Compute::kF32, xa.view(), y.view(), Aligned());
  }
  void Backward() {
    LoraBackward(x.view(), a.view(), b.view(), 2, dropout, Compute::kF32, xa.view(), dy.view(), dx.view(), da.view(),
                 db.view(), Aligned());
  }
  double Flops() const { return 4.0 * x.rows * x.cols * a.rows; }
};

void Sizes(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"tokens", "dim", "rank", "dropout_percent"})
      ->Args({512, 2048, 16, 0})
      ->Args({512, 2048, 16, 10})
      ->UseRealTime();
}

void BM_LoraForward(benchmark::State& state) {
  Branch branch(state);
  branch.Forward();
  std::vector<float> first = branch.xa.data;
  for (auto _ : state) branch.Forward();
  Verify(state, branch.xa.data, first, 0);
  state.counters["GFLOP/s"] = benchmark::Counter(branch.Flops() * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(BM_LoraForward)->Apply(Sizes);

void BM_LoraBackward(benchmark::State& state) {
  Branch branch(state);
  branch.Forward();
  for (auto _ : state) branch.Backward();
  state.counters["GFLOP/s"] =
      benchmark::Counter(2 * branch.Flops() * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(BM_LoraBackward)->Apply(Sizes);

void BM_LoraDropout(benchmark::State& state) {
  Branch branch(state);
  for (auto _ : state) ApplyLoraDropout(branch.x.view(), branch.dropout, 0, branch.dx.view());
  state.SetItemsProcessed(state.iterations() * branch.x.data.size());
}
BENCHMARK(BM_LoraDropout)->Apply(Sizes);

}  // namespace
}  // namespace thimble
BENCHMARK_MAIN();
