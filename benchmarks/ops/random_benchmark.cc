// Random numbers: values a second, the vector path beside one block after another.
#include <cstdint>
#include <vector>

#include "benchmark/benchmark.h"
#include "ops/random.h"
#include "ops/view.h"

namespace thimble {
namespace {

constexpr int64_t kCount = 1 << 16;

std::vector<uint32_t> Naive() {
  std::vector<uint32_t> bits;
  for (uint32_t block = 0; block < kCount / 4; ++block) {
    for (const uint32_t word : Philox4x32({block, 0, 2, 0}, {1, 0})) bits.push_back(word);
  }
  return bits;
}

void BM_RandomBits(benchmark::State& state) {
  std::vector<uint32_t> bits(kCount);
  RandomBits(1, 2, 0, kCount, bits.data());
  if (bits != Naive()) state.SkipWithError("wrong bits");
  for (auto _ : state) {
    RandomBits(1, 2, 0, kCount, bits.data());
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * kCount);
}
BENCHMARK(BM_RandomBits)->UseRealTime();

void BM_RandomBitsNaive(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(Naive());
  state.SetItemsProcessed(state.iterations() * kCount);
}
BENCHMARK(BM_RandomBitsNaive)->UseRealTime();

void BM_RandomNormal(benchmark::State& state) {
  std::vector<float> values(kCount);
  for (auto _ : state) {
    RandomNormal(1, 2, 0, 0, 1, {values.data(), kCount});
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * kCount);
}
BENCHMARK(BM_RandomNormal)->UseRealTime();

}  // namespace
}  // namespace thimble
BENCHMARK_MAIN();
