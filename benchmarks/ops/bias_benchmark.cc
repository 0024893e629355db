// Bias and its gradient against plain loops; of_stream is the share of the machine's bandwidth.
#include "benchmarks/bandwidth.h"
#include "benchmarks/ops/op_data.h"
#include "ops/bias.h"

namespace thimble {
namespace {

void BM_BiasForward(benchmark::State& state) {
  BenchmarkMatrix y(state.range(0), state.range(1)), b(1, y.cols, 2);
  const float before = y.data.back();
  BiasForward(b.vector(), y.view());
  if (y.data.back() != before + b.data.back()) state.SkipWithError("wrong values");
  for (auto _ : state) BiasForward(b.vector(), y.view());
  SetBandwidth(state, 8.0 * y.data.size());
}
BENCHMARK(BM_BiasForward)->ArgNames({"rows", "cols"})->Args({2048, 4096})->UseRealTime();

void NaiveBackward(BenchmarkMatrix& dy, BenchmarkMatrix& db) {
  for (int64_t r = 0; r < dy.rows; ++r) {
    for (int64_t c = 0; c < dy.cols; ++c) db.data[c] += dy.data[r * dy.cols + c];
  }
}

void BM_BiasBackward(benchmark::State& state) {
  BenchmarkMatrix dy(state.range(0), state.range(1)), db(1, dy.cols, 2), expected = db;
  BiasBackward(dy.view(), db.vector());
  NaiveBackward(dy, expected);
  Verify(state, db.data, expected.data, 1e-2f);
  for (auto _ : state) BiasBackward(dy.view(), db.vector());
  SetBandwidth(state, 4.0 * dy.data.size());
}
BENCHMARK(BM_BiasBackward)->ArgNames({"rows", "cols"})->Args({2048, 128})->Args({2048, 4096})->UseRealTime();

void BM_BiasBackwardNaive(benchmark::State& state) {
  BenchmarkMatrix dy(state.range(0), state.range(1)), db(1, dy.cols, 2);
  for (auto _ : state) NaiveBackward(dy, db);
  SetBandwidth(state, 4.0 * dy.data.size());
}
BENCHMARK(BM_BiasBackwardNaive)->ArgNames({"rows", "cols"})->Args({2048, 128})->Args({2048, 4096})->UseRealTime();

}  // namespace
}  // namespace thimble
BENCHMARK_MAIN();
