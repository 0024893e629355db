// Quantising and decoding 4-bit weights, in values a second; the vector paths beside the plain ones.
#include <cstring>
#include <vector>

#include "benchmark/benchmark.h"
#include "benchmarks/ops/values.h"
#include "ops/quantize_4bit.h"

namespace thimble {
namespace {

template <auto Quantize>
void BM_Quantize4Bit(benchmark::State& state) {
  const int64_t count = 1 << 20;
  const std::vector<float> values = Values(count);
  std::vector<uint8_t> codes(count / 2), check(count / 2);
  std::vector<float> absmax(count / 64);
  Quantize4BitPortable(Format::kNF4, {values.data(), count}, 64, check.data(), {absmax.data(), count / 64});
  for (auto _ : state) {
    Quantize(Format::kNF4, {values.data(), count}, 64, codes.data(), {absmax.data(), count / 64});
    benchmark::ClobberMemory();
  }
  if (codes != check) state.SkipWithError("wrong codes");
  state.SetItemsProcessed(state.iterations() * count);
}
BENCHMARK(BM_Quantize4Bit<Quantize4Bit>)->Name("BM_Quantize4Bit/nf4/block:64")->UseRealTime();
BENCHMARK(BM_Quantize4Bit<Quantize4BitPortable>)->Name("BM_Quantize4BitPortable/nf4/block:64")->UseRealTime();

template <auto Decode>
void BM_DecodeRow(benchmark::State& state) {
  const int64_t rows = 64, cols = 4096, count = state.range(0);
  const std::vector<float> values = Values(rows * cols);
  WeightQuantizer quantizer(Format::kNF4, rows, cols, 64, state.range(1) != 0);
  quantizer.Push({values.data(), rows * cols});
  const QuantizedWeight w = quantizer.Finish();
  std::vector<float> out(count), check(count);
  DecodeRow(w.View(), 3, 0, count, out.data());
  DecodeRowPortable(w.View(), 3, 0, count, check.data());
  if (out != check) state.SkipWithError("wrong values");
  int64_t row = 0;
  for (auto _ : state) {
    Decode(w.View(), row, 0, count, out.data());
    benchmark::ClobberMemory();
    row = (row + 1) % rows;
  }
  state.SetItemsProcessed(state.iterations() * count);
}
BENCHMARK(BM_DecodeRow<DecodeRow>)
    ->Name("BM_DecodeRow/nf4")
    ->ArgNames({"count", "nested"})
    ->Args({256, 0})
    ->Args({256, 1})
    ->Args({4096, 1});
BENCHMARK(BM_DecodeRow<DecodeRowPortable>)
    ->Name("BM_DecodeRowPortable/nf4")
    ->ArgNames({"count", "nested"})
    ->Args({256, 0});

}  // namespace
}  // namespace thimble

BENCHMARK_MAIN();
