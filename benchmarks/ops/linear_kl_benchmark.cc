// Kullback-Leibler divergence of two heads: FLOP/s and their share of the FMA peak, counted by its two products.
#include <random>
#include <vector>

#include "benchmark/benchmark.h"
#include "benchmarks/peak.h"
#include "ops/linear_kl.h"

namespace thimble {
namespace {

void BM_LinearKL(benchmark::State& state) {
  const int64_t rows = state.range(0), dim = state.range(1), vocab = state.range(2);
  std::mt19937 bits(1);
  std::normal_distribution<float> normal(0, 0.2f);
  const auto random = [&](int64_t size) {
    std::vector<float> values(size);
    for (float& value : values) value = normal(bits);
    return values;
  };
  const std::vector<float> h_p = random(rows * dim), h_q = random(rows * dim);
  const std::vector<float> head_p = random(vocab * dim), head_q = random(vocab * dim);
  std::vector<float> kl(rows);
  std::vector<int32_t> top_p(rows), top_q(rows);
  const WeightView p(head_p.data(), vocab, dim), q(head_q.data(), vocab, dim);
  std::vector<char> scratch(LinearKLScratchBytes(rows, p, q) + 64);
  const uintptr_t address = reinterpret_cast<uintptr_t>(scratch.data());
  char* aligned = scratch.data() + ((address + 63) / 64 * 64 - address);
  for (auto _ : state) {
    LinearKL(ConstMatrix(h_p.data(), rows, dim), p, ConstMatrix(h_q.data(), rows, dim), q, Vector(kl.data(), rows),
             {top_p.data(), rows}, {top_q.data(), rows}, {aligned, static_cast<int64_t>(scratch.size()) - 64});
  }
  static const double peak = 1e9 * PeakF32Gflops();
  const double flops = 4.0 * rows * dim * vocab * state.iterations();
  state.counters["FLOPS"] = benchmark::Counter(flops, benchmark::Counter::kIsRate);
  state.counters["of_peak"] = benchmark::Counter(flops / peak, benchmark::Counter::kIsRate);
}
BENCHMARK(BM_LinearKL)
    ->ArgNames({"rows", "dim", "vocab"})
    ->Args({256, 896, 16384})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

}  // namespace
}  // namespace thimble

BENCHMARK_MAIN();
