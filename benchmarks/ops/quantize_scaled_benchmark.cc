// Quantising to codes with scales and decoding them, in values a second; the vector decoders beside the plain ones.
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "benchmarks/ops/values.h"
#include "ops/quantize_scaled.h"

namespace thimble {
namespace {

constexpr int64_t kRows = 64, kCols = 1024;

QuantizedWeight Made(const ScaledScheme& scheme) {
  QuantizedWeight w = MakeScaledWeight(scheme.format, kRows, kCols, GroupOf(scheme.format, scheme.group, kCols));
  if (scheme.format == Format::kE2M1) SetTensorScale(0x1p-5f, &w);
  return w;
}

void BM_Quantize(benchmark::State& state, const ScaledScheme& scheme) {
  const std::vector<float> values = Values(kRows * kCols);
  QuantizedWeight w = Made(scheme);
  for (auto _ : state) {
    if (!QuantizeScaledRows({values.data(), kRows * kCols}, 0, &w)) state.SkipWithError("not finite");
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * kRows * kCols);
}

void BM_Decode(benchmark::State& state, const ScaledScheme& scheme, decltype(DecodeRow)* decode) {
  const std::vector<float> values = Values(kRows * kCols);
  QuantizedWeight w = Made(scheme);
  QuantizeScaledRows({values.data(), kRows * kCols}, 0, &w);
  std::vector<float> out(kCols), check(kCols);
  DecodeRowPortable(w.View(), 3, 0, kCols, check.data());
  for (auto _ : state) {
    decode(w.View(), 3, 0, kCols, out.data());
    benchmark::ClobberMemory();
  }
  if (out != check) state.SkipWithError("wrong values");
  state.SetItemsProcessed(state.iterations() * kCols);
}

void Register() {
  for (const ScaledScheme& scheme : ScaledSchemes()) {
    const std::string name(scheme.name);
    benchmark::RegisterBenchmark(("BM_DecodeScaled/" + name).c_str(), BM_Decode, scheme, DecodeRow);
    benchmark::RegisterBenchmark(("BM_DecodeScaledPortable/" + name).c_str(), BM_Decode, scheme, DecodeRowPortable);
    benchmark::RegisterBenchmark(("BM_QuantizeScaled/" + name).c_str(), BM_Quantize, scheme)->UseRealTime();
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
