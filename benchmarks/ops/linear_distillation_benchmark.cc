// Distillation of a frozen head, forward and backward: FLOP/s and their share of the FMA peak, counted by its five
// products.
#include <random>
#include <vector>

#include "benchmark/benchmark.h"
#include "benchmarks/peak.h"
#include "ops/linear_distillation.h"

namespace thimble {
namespace {

void BM_LinearDistillation(benchmark::State& state) {
  const int64_t rows = state.range(0), dim = state.range(1), vocab = state.range(2);
  std::mt19937 bits(1);
  std::normal_distribution<float> normal(0, 0.2f);
  const auto random = [&](int64_t size) {
    std::vector<float> values(size);
    for (float& value : values) value = normal(bits);
    return values;
  };
  const std::vector<float> h = random(rows * dim), teacher_h = random(rows * dim);
  const std::vector<float> head = random(vocab * dim), teacher_head = random(vocab * dim);
  std::vector<int32_t> targets(rows);
  for (int32_t& target : targets) target = static_cast<int32_t>(bits() % vocab);
  const DistillationInputs in = {ConstMatrix(h.data(), rows, dim),
                                 WeightView(head.data(), vocab, dim),
                                 ConstMatrix(teacher_h.data(), rows, dim),
                                 WeightView(teacher_head.data(), vocab, dim),
                                 {targets.data(), rows}};
  std::vector<float> loss(rows), divergence(rows), stats(rows * kDistillationStats), dh(rows * dim);
  std::vector<char> scratch(LinearDistillationScratchBytes(in.head, in.teacher_head) + 64);
  const uintptr_t address = reinterpret_cast<uintptr_t>(scratch.data());
  const Scratch aligned = {scratch.data() + ((address + 63) / 64 * 64 - address),
                           static_cast<int64_t>(scratch.size()) - 64};
  const Matrix kept(stats.data(), rows, kDistillationStats);
  for (auto _ : state) {
    LinearDistillationForward(in, {}, Vector(loss.data(), rows), Vector(divergence.data(), rows), kept, aligned);
    LinearDistillationBackward(in, kept, 1, {}, Matrix(dh.data(), rows, dim), Matrix(), aligned);
  }
  static const double peak = 1e9 * PeakF32Gflops();
  const double flops = 10.0 * rows * dim * vocab * state.iterations();
  state.counters["FLOPS"] = benchmark::Counter(flops, benchmark::Counter::kIsRate);
  state.counters["of_peak"] = benchmark::Counter(flops / peak, benchmark::Counter::kIsRate);
}
BENCHMARK(BM_LinearDistillation)
    ->ArgNames({"rows", "dim", "vocab"})
    ->Args({256, 896, 16384})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

}  // namespace
}  // namespace thimble
