// Attention in f32 and in bf16: FLOP/s and their share of the f32 FMA peak, counted over visible pairs (4 * head_dim
// forward, 10 * head_dim backward).
#include <cmath>
#include <random>
#include <vector>

#include "benchmark/benchmark.h"
#include "benchmarks/peak.h"
#include "ops/attention.h"

namespace thimble {
namespace {

struct Problem {
  AttentionShape shape;
  int64_t tokens;
  std::vector<float> q, k, v, out, lse, dout, dq, dk, dv;
  std::vector<int32_t> starts;
  std::vector<char> scratch;

  // Samples of `sample` tokens each.
  Problem(int64_t tokens, int heads, int kv_heads, int dim, int64_t sample, Compute compute)
      : shape{heads, kv_heads, dim, 1 / std::sqrt(static_cast<float>(dim)), 0, 0, compute}, tokens(tokens) {
    const int64_t wide = tokens * heads * dim, narrow = tokens * kv_heads * dim;
    std::mt19937 bits(1);
    std::normal_distribution<float> normal;
    const auto random = [&](int64_t size) {
      std::vector<float> values(size);
      for (float& value : values) value = normal(bits);
      return values;
    };
    q = random(wide), k = random(narrow), v = random(narrow), dout = random(wide);
    out = dq = q, dk = dv = k;
    lse.resize(tokens * heads);
    for (int64_t i = 0; i < tokens; ++i) starts.push_back(static_cast<int32_t>(i / sample * sample));
    scratch.resize(AttentionScratchBytes(shape, tokens) + 64);
  }
  Matrix Wide(std::vector<float>& x) const { return {x.data(), tokens, shape.num_heads * shape.head_dim}; }
  Matrix Narrow(std::vector<float>& x) const { return {x.data(), tokens, shape.num_kv_heads * shape.head_dim}; }
  Matrix Lse() { return {lse.data(), tokens, shape.num_heads}; }
  ConstInts Starts() const { return {starts.data(), tokens}; }
  Scratch scratch_view() {
    const uintptr_t address = reinterpret_cast<uintptr_t>(scratch.data());
    return {scratch.data() + ((address + 63) / 64 * 64 - address), static_cast<int64_t>(scratch.size()) - 64};
  }
  void Forward() { AttentionForward(Wide(q), Narrow(k), Narrow(v), Starts(), shape, Wide(out), Lse(), scratch_view()); }
  void Backward() {
    AttentionBackward(Wide(q), Narrow(k), Narrow(v), Wide(out), Lse(), Wide(dout), Starts(), shape, Wide(dq),
                      Narrow(dk), Narrow(dv), scratch_view());
  }
  double VisiblePairs() const {
    double pairs = 0;
    for (int64_t i = 0; i < tokens; ++i) pairs += static_cast<double>(i - starts[i] + 1);
    return pairs * shape.num_heads;
  }
};

Problem Make(const benchmark::State& state) {
  return Problem(state.range(0), static_cast<int>(state.range(1)), static_cast<int>(state.range(2)),
                 static_cast<int>(state.range(3)), state.range(4), state.range(5) ? Compute::kBF16 : Compute::kF32);
}

void Report(benchmark::State& state, double flops) {
  state.counters["FLOPS"] = benchmark::Counter(flops * state.iterations(), benchmark::Counter::kIsRate);
  static const double peak = 1e9 * PeakF32Gflops();
  state.counters["of_peak"] = benchmark::Counter(flops / peak * state.iterations(), benchmark::Counter::kIsRate);
}

void BM_AttentionForward(benchmark::State& state) {
  Problem p = Make(state);
  for (auto _ : state) p.Forward();
  Report(state, 4.0 * p.shape.head_dim * p.VisiblePairs());
}

void BM_AttentionBackward(benchmark::State& state) {
  Problem p = Make(state);
  p.Forward();
  for (auto _ : state) p.Backward();
  Report(state, 10.0 * p.shape.head_dim * p.VisiblePairs());
}

void Sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"tokens", "heads", "kv_heads", "dim", "sample", "bf16"});
  for (const int bf16 : {0, 1}) {
    b->Args({1024, 14, 2, 64, 1024, bf16})->Args({1024, 14, 2, 64, 64, bf16})->Args({1024, 8, 8, 128, 1024, bf16});
  }
  b->Unit(benchmark::kMillisecond)->UseRealTime();
}
BENCHMARK(BM_AttentionForward)->Apply(Sizes);
BENCHMARK(BM_AttentionBackward)->Apply(Sizes);

// One new token against a cache of range(0) keys.
void BM_AttentionDecode(benchmark::State& state) {
  Problem p(state.range(0), 14, 2, 64, state.range(0), Compute::kF32);
  const int64_t last = p.tokens - 1;
  for (auto _ : state) {
    AttentionForward(p.Wide(p.q).Rows(last, 1), p.Narrow(p.k), p.Narrow(p.v), {p.starts.data(), 1}, p.shape,
                     p.Wide(p.out).Rows(last, 1), p.Lse().Rows(last, 1), p.scratch_view());
  }
  Report(state, 4.0 * p.shape.head_dim * p.tokens * p.shape.num_heads);
}
BENCHMARK(BM_AttentionDecode)->ArgName("keys")->Arg(1024)->Unit(benchmark::kMicrosecond)->UseRealTime();

}  // namespace
}  // namespace thimble

BENCHMARK_MAIN();
