// Merging an adapter and quantising, as training for a format does it once a step.
#include "benchmarks/bandwidth.h"
#include "benchmarks/ops/op_data.h"
#include "ops/quantize_merged.h"
#include "ops/scratch_buffer.h"

namespace thimble {
namespace {

void BM_QuantizeMerged(benchmark::State& state) {
  const auto format = static_cast<Format>(state.range(0));
  BenchmarkMatrix w(1024, 1024), a(16, 1024, 2), b(1024, 16, 3);
  std::vector<uint8_t> bytes(StoredBytes(format, 1024 * 1024));
  MergedWeight merged;
  merged.w = WeightView(w.data.data(), 1024, 1024);
  if (state.range(1) != 0) {
    merged.a = a.view();
    merged.b = b.view();
    merged.scale = 0.01f;
  }
  WeightView out;
  out.format = format;
  out.rows = out.cols = 1024;
  out.data = bytes.data();
  ScratchBuffer scratch(QuantizeMergedScratchBytes(1024));
  for (auto _ : state) QuantizeMerged(merged, out, scratch.view());
  SetBandwidth(state, 4.0 * w.data.size());
}
BENCHMARK(BM_QuantizeMerged)
    ->ArgNames({"format", "adapter"})
    ->ArgsProduct({{static_cast<int>(Format::kQ4_0), static_cast<int>(Format::kQ4K), static_cast<int>(Format::kMXFP4)},
                   {0, 1}})
    ->UseRealTime();

}  // namespace
}  // namespace thimble
BENCHMARK_MAIN();
