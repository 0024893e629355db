// Cut cross-entropy: FLOP/s and their share of the FMA peak, counted by its products (1 forward, 2 fused, 3 backward
// with a trained head).
#include <random>
#include <vector>

#include "benchmark/benchmark.h"
#include "benchmarks/peak.h"
#include "ops/linear_cross_entropy.h"

namespace thimble {
namespace {

struct Problem {
  int64_t rows, dim, vocab;
  std::vector<float> h, dh, dhead, loss, lse;
  std::vector<uint16_t> head;
  std::vector<int32_t> targets;
  std::vector<char> scratch;
  LinearCrossEntropyOptions options;

  explicit Problem(const benchmark::State& state, bool trained = false, float filter = 0)
      : rows(state.range(0)),
        dim(state.range(1)),
        vocab(state.range(2)),
        h(rows * dim),
        dh(rows * dim),
        loss(rows),
        lse(rows),
        head(vocab * dim),
        targets(rows) {
    std::mt19937 bits(1);
    std::normal_distribution<float> normal;
    for (float& x : h) x = normal(bits);
    for (uint16_t& x : head) x = FloatToBF16(0.1f * normal(bits));
    for (int32_t& x : targets) x = static_cast<int32_t>(bits() % vocab);
    if (trained) dhead.resize(vocab * dim);
    options.filter_threshold = filter;
    scratch.resize(LinearCrossEntropyScratchBytes(rows, dim, options) + 64);
  }
  Matrix Hidden(std::vector<float>& x) const { return {x.data(), rows, dim}; }
  Matrix HeadGradient() { return dhead.empty() ? Matrix() : Matrix(dhead.data(), vocab, dim); }
  WeightView Head() const {
    WeightView view(nullptr, vocab, dim);
    view.format = Format::kBF16;
    view.data = head.data();
    return view;
  }
  ConstInts Targets() const { return {targets.data(), rows}; }
  Vector Loss() { return {loss.data(), rows}; }
  Vector Lse() { return {lse.data(), rows}; }
  Scratch scratch_view() {
    const uintptr_t address = reinterpret_cast<uintptr_t>(scratch.data());
    return {scratch.data() + ((address + 63) / 64 * 64 - address), static_cast<int64_t>(scratch.size()) - 64};
  }
  void Report(benchmark::State& state, int products) const {
    static const double peak = 1e9 * PeakF32Gflops();
    const double flops = 2.0 * products * rows * dim * vocab * state.iterations();
    state.counters["FLOPS"] = benchmark::Counter(flops, benchmark::Counter::kIsRate);
    state.counters["of_peak"] = benchmark::Counter(flops / peak, benchmark::Counter::kIsRate);
    state.counters["scratch"] = static_cast<double>(scratch.size() - 64);
  }
};

// range(3): 0 f32, 1 bf16.
void BM_LinearCrossEntropyForward(benchmark::State& state) {
  Problem p(state);
  p.options.compute = state.range(3) != 0 ? Compute::kBF16 : Compute::kF32;
  for (auto _ : state) {
    LinearCrossEntropyForward(p.Hidden(p.h), p.Head(), p.Targets(), p.options, p.Loss(), p.Lse(), p.scratch_view());
  }
  p.Report(state, 1);
}

void BM_LinearCrossEntropyFused(benchmark::State& state) {
  Problem p(state);
  p.options.compute = state.range(3) != 0 ? Compute::kBF16 : Compute::kF32;
  for (auto _ : state) {
    LinearCrossEntropyFused(p.Hidden(p.h), p.Head(), p.Targets(), 1, p.options, p.Loss(), p.Lse(), p.Hidden(p.dh),
                            p.scratch_view());
  }
  p.Report(state, 2);
}

// range(3): 0 exact, 1 filtered at 2^-12.
void BM_LinearCrossEntropyBackward(benchmark::State& state) {
  Problem p(state, true, state.range(3) != 0 ? 1.0f / 4096 : 0);
  LinearCrossEntropyForward(p.Hidden(p.h), p.Head(), p.Targets(), p.options, p.Loss(), p.Lse(), p.scratch_view());
  for (auto _ : state) {
    LinearCrossEntropyBackward(p.Hidden(p.h), p.Head(), p.Targets(), p.Lse(), 1, p.options, p.Hidden(p.dh),
                               p.HeadGradient(), p.scratch_view());
  }
  p.Report(state, 3);
}

void Sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"rows", "dim", "vocab", "bf16"})->Args({512, 896, 32768, 0})->Args({512, 896, 32768, 1});
  b->Unit(benchmark::kMillisecond)->UseRealTime();
}
BENCHMARK(BM_LinearCrossEntropyForward)->Apply(Sizes);
BENCHMARK(BM_LinearCrossEntropyFused)->Apply(Sizes);
BENCHMARK(BM_LinearCrossEntropyBackward)
    ->ArgNames({"rows", "dim", "vocab", "filter"})
    ->Args({512, 896, 32768, 0})
    ->Args({512, 896, 32768, 1})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

}  // namespace
}  // namespace thimble

BENCHMARK_MAIN();
