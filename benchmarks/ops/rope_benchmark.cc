// Rotation and its table against a plain loop; of_stream is the share of the machine's bandwidth.
#include <cstdint>
#include <vector>

#include "benchmarks/bandwidth.h"
#include "benchmarks/ops/op_data.h"
#include "ops/rope.h"

namespace thimble {
namespace {

struct Table {
  BenchmarkMatrix cos, sin;
  Table(int64_t tokens, int head_dim) : cos(tokens, head_dim / 2), sin(tokens, head_dim / 2) { Compute(); }
  void Compute() {
    std::vector<int32_t> positions(cos.rows);
    for (int64_t t = 0; t < cos.rows; ++t) positions[t] = t;
    const RopeFrequencies frequencies = MakeRopeFrequencies(2 * cos.cols, 1e4, {}, cos.rows);
    RopeTable({positions.data(), cos.rows}, {frequencies.inv_freq.data(), cos.cols}, 1, cos.view(), sin.view());
  }
};

void NaiveForward(const BenchmarkMatrix& x, const Table& table, int head_dim, BenchmarkMatrix& y) {
  const int half = head_dim / 2;
  for (int64_t t = 0; t < x.rows; ++t) {
    for (int64_t begin = t * x.cols; begin < (t + 1) * x.cols; begin += head_dim) {
      for (int i = 0; i < half; ++i) {
        const float c = table.cos.data[t * half + i], s = table.sin.data[t * half + i];
        const float a = x.data[begin + i], b = x.data[begin + half + i];
        y.data[begin + i] = a * c - b * s;
        y.data[begin + half + i] = b * c + a * s;
      }
    }
  }
}

void BM_RopeForward(benchmark::State& state) {
  const int head_dim = state.range(2);
  BenchmarkMatrix x(state.range(0), state.range(1) * head_dim), y = x, expected = x;
  Table table(x.rows, head_dim);
  NaiveForward(x, table, head_dim, expected);
  for (auto _ : state) RopeForward(x.view(), table.cos.view(), table.sin.view(), head_dim, y.view());
  Verify(state, y.data, expected.data, 1e-6f);
  SetBandwidth(state, 8.0 * x.data.size() + 8.0 * table.cos.data.size());
}
BENCHMARK(BM_RopeForward)
    ->ArgNames({"tokens", "heads", "head_dim"})
    ->Args({2048, 32, 64})
    ->Args({2048, 32, 128})
    ->UseRealTime();

void BM_RopeForwardNaive(benchmark::State& state) {
  const int head_dim = state.range(2);
  BenchmarkMatrix x(state.range(0), state.range(1) * head_dim), y = x;
  Table table(x.rows, head_dim);
  for (auto _ : state) {
    NaiveForward(x, table, head_dim, y);
    benchmark::ClobberMemory();
  }
  SetBandwidth(state, 8.0 * x.data.size() + 8.0 * table.cos.data.size());
}
BENCHMARK(BM_RopeForwardNaive)->ArgNames({"tokens", "heads", "head_dim"})->Args({2048, 32, 128})->UseRealTime();

void BM_RopeTable(benchmark::State& state) {
  Table table(state.range(0), 128);
  for (auto _ : state) table.Compute();
  state.SetItemsProcessed(state.iterations() * table.cos.data.size());
}
BENCHMARK(BM_RopeTable)->ArgName("tokens")->Arg(2048)->UseRealTime();

}  // namespace
}  // namespace thimble
BENCHMARK_MAIN();
