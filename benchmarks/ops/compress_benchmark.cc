// Saved values in fewer bytes; of_stream is the share of the machine's bandwidth.
#include "benchmarks/bandwidth.h"
#include "benchmarks/ops/op_data.h"
#include "ops/compress.h"

namespace thimble {
namespace {

// Argument: 1 bf16, 2 int8.
void BM_Compress(benchmark::State& state) {
  const Compression compression = static_cast<Compression>(state.range(0));
  BenchmarkMatrix x(2048, 4096, 1), packed(2048, CompressedWords(compression, 4096));
  for (auto _ : state) Compress(compression, x.view(), packed.view());
  SetBandwidth(state, 4.0 * (x.data.size() + packed.data.size()));
}
BENCHMARK(BM_Compress)->Arg(1)->Arg(2)->UseRealTime();

void BM_Decompress(benchmark::State& state) {
  const Compression compression = static_cast<Compression>(state.range(0));
  BenchmarkMatrix x(2048, 4096, 1), packed(2048, CompressedWords(compression, 4096)), back(2048, 4096);
  Compress(compression, x.view(), packed.view());
  for (auto _ : state) Decompress(compression, packed.view(), back.view());
  for (size_t i = 0; i < x.data.size(); ++i) {
    if (!(std::abs(back.data[i] - x.data[i]) <= 0.02f)) return state.SkipWithError("wrong values");
  }
  SetBandwidth(state, 4.0 * (x.data.size() + packed.data.size()));
}
BENCHMARK(BM_Decompress)->Arg(1)->Arg(2)->UseRealTime();

}  // namespace
}  // namespace thimble
BENCHMARK_MAIN();
