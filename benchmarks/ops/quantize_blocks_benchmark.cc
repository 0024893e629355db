// Quantising to and decoding ggml's block formats, in values a second; the vector decoders beside the plain ones.
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "benchmarks/ops/values.h"
#include "ops/decode_blocks.h"
#include "ops/quantize_blocks.h"

namespace thimble {
namespace {

void BM_Quantize(benchmark::State& state, Format format) {
  const int64_t count = 1 << 16;
  const std::vector<float> values = Values(count);
  std::vector<uint8_t> blocks(StoredBytes(format, count));
  for (auto _ : state) {
    QuantizeBlocks(format, {values.data(), count}, blocks.data());
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * count);
}

void BM_Decode(benchmark::State& state, Format format, decltype(DecodeBlocks)* decode) {
  const int64_t count = 1 << 12;
  const std::vector<float> values = Values(count);
  std::vector<uint8_t> blocks(StoredBytes(format, count));
  QuantizeBlocks(format, {values.data(), count}, blocks.data());
  std::vector<float> out(count), check(count);
  DecodeBlocksPortable(format, blocks.data(), count / InfoOf(format).values_per_block, check.data());
  for (auto _ : state) {
    decode(format, blocks.data(), count / InfoOf(format).values_per_block, out.data());
    benchmark::ClobberMemory();
  }
  if (out != check) state.SkipWithError("wrong values");
  state.SetItemsProcessed(state.iterations() * count);
}

void Register() {
  for (int f = 0; f < kFormats; ++f) {
    const Format format = static_cast<Format>(f);
    if (!IsBlockFormat(format)) continue;
    const std::string name(InfoOf(format).name);
    benchmark::RegisterBenchmark(("BM_DecodeBlocks/" + name).c_str(), BM_Decode, format, DecodeBlocks);
    benchmark::RegisterBenchmark(("BM_DecodeBlocksPortable/" + name).c_str(), BM_Decode, format, DecodeBlocksPortable);
    benchmark::RegisterBenchmark(("BM_QuantizeBlocks/" + name).c_str(), BM_Quantize, format)->UseRealTime();
  }
}

}  // namespace
}  // namespace thimble

int main(int argc, char** argv) {
  thimble::Register();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
