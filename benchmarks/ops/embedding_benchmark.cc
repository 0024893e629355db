// Embedding rows and their gradient; of_stream is the share of the machine's bandwidth.
#include <cstdint>
#include <vector>

#include "benchmarks/bandwidth.h"
#include "benchmarks/ops/op_data.h"
#include "ops/embedding.h"

namespace thimble {
namespace {

std::vector<int32_t> Ids(int64_t count, int64_t rows) {
  std::vector<uint32_t> bits(count);
  RandomBits(1, 2, 0, count, bits.data());
  std::vector<int32_t> ids;
  for (const uint32_t word : bits) ids.push_back(word % rows);
  return ids;
}

void BM_EmbeddingForward(benchmark::State& state) {
  const int64_t tokens = state.range(0), dim = state.range(1), vocab = 32000;
  BenchmarkMatrix table(vocab, dim), y(tokens, dim);
  const std::vector<int32_t> ids = Ids(tokens, vocab);
  for (auto _ : state) EmbeddingForward({ids.data(), tokens}, {table.data.data(), vocab, dim}, y.view());
  if (y.data.back() != table.data[ids.back() * dim + dim - 1]) state.SkipWithError("wrong values");
  SetBandwidth(state, 8.0 * tokens * dim);
}
BENCHMARK(BM_EmbeddingForward)->ArgNames({"tokens", "dim"})->Args({2048, 2048})->UseRealTime();

void NaiveBackward(const std::vector<int32_t>& ids, const BenchmarkMatrix& dy, BenchmarkMatrix& dtable) {
  for (int64_t t = 0; t < dy.rows; ++t) {
    for (int64_t c = 0; c < dy.cols; ++c) dtable.data[ids[t] * dy.cols + c] += dy.data[t * dy.cols + c];
  }
}

void BM_EmbeddingBackward(benchmark::State& state) {
  const int64_t tokens = state.range(0), dim = state.range(1), vocab = 32000;
  BenchmarkMatrix dy(tokens, dim, 2), dtable(vocab, dim), expected = dtable;
  const std::vector<int32_t> ids = Ids(tokens, vocab);
  EmbeddingBackward({ids.data(), tokens}, dy.view(), dtable.view());
  NaiveBackward(ids, dy, expected);
  Verify(state, dtable.data, expected.data, 0);
  for (auto _ : state) EmbeddingBackward({ids.data(), tokens}, dy.view(), dtable.view());
  SetBandwidth(state, 12.0 * tokens * dim);
}
BENCHMARK(BM_EmbeddingBackward)->ArgNames({"tokens", "dim"})->Args({2048, 2048})->UseRealTime();

void BM_EmbeddingBackwardNaive(benchmark::State& state) {
  const int64_t tokens = state.range(0), dim = state.range(1), vocab = 32000;
  BenchmarkMatrix dy(tokens, dim, 2), dtable(vocab, dim);
  const std::vector<int32_t> ids = Ids(tokens, vocab);
  for (auto _ : state) NaiveBackward(ids, dy, dtable);
  SetBandwidth(state, 12.0 * tokens * dim);
}
BENCHMARK(BM_EmbeddingBackwardNaive)->ArgNames({"tokens", "dim"})->Args({2048, 2048})->UseRealTime();

}  // namespace
}  // namespace thimble
BENCHMARK_MAIN();
