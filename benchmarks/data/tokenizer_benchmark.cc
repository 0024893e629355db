// Encoding and decoding speed on English text; needs the test assets (THIMBLE_ASSETS).
#include <benchmark/benchmark.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "data/file.h"
#include "data/tokenizer.h"

namespace thimble {
namespace {

std::string Asset(const std::string& name) {
  const char* folder = std::getenv("THIMBLE_ASSETS");
  return std::string(folder != nullptr ? folder : THIMBLE_SOURCE_DIR "/../shared/assets") + "/" + name;
}

struct Input {
  std::unique_ptr<Tokenizer> tokenizer;
  std::string text;
};

// False, with the benchmark skipped, where a file is missing or the text does not survive the way there and back.
bool Prepare(benchmark::State& state, const std::string& name, Input& input) {
  auto tokenizer = Tokenizer::Load(Asset("tokenizers/" + name));
  auto text = ReadFile(Asset("datasets/tinystories_sample.txt"));
  if (!tokenizer.ok() || !text.ok()) {
    state.SkipWithError(("SKIPPED: no asset for " + name + "; set THIMBLE_ASSETS").c_str());
    return false;
  }
  input = {std::move(tokenizer).value(), std::move(text).value()};
  if (input.tokenizer->Decode(input.tokenizer->Encode(input.text, false), false) != input.text) {
    state.SkipWithError("decoding does not give the text back");
    return false;
  }
  return true;
}

void BM_Encode(benchmark::State& state, const std::string& name) {
  Input input;
  if (!Prepare(state, name, input)) return;
  for (auto _ : state) benchmark::DoNotOptimize(input.tokenizer->Encode(input.text, false));
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(input.text.size()));
}

void BM_EncodeWithOffsets(benchmark::State& state, const std::string& name) {
  Input input;
  if (!Prepare(state, name, input)) return;
  for (auto _ : state) benchmark::DoNotOptimize(input.tokenizer->EncodeWithOffsets(input.text, false));
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(input.text.size()));
}

void BM_Decode(benchmark::State& state, const std::string& name) {
  Input input;
  if (!Prepare(state, name, input)) return;
  const std::vector<int32_t> ids = input.tokenizer->Encode(input.text, false);
  for (auto _ : state) benchmark::DoNotOptimize(input.tokenizer->Decode(ids, false));
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(input.text.size()));
}

}  // namespace
}  // namespace thimble

int main(int argc, char** argv) {
  for (const char* name : {"gpt2", "llama-3", "qwen3", "llama-2"}) {
    const std::string tokenizer = name;
    benchmark::RegisterBenchmark(("BM_Encode/" + tokenizer).c_str(), thimble::BM_Encode, tokenizer);
    benchmark::RegisterBenchmark(("BM_EncodeWithOffsets/" + tokenizer).c_str(), thimble::BM_EncodeWithOffsets,
                                 tokenizer);
    benchmark::RegisterBenchmark(("BM_Decode/" + tokenizer).c_str(), thimble::BM_Decode, tokenizer);
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
