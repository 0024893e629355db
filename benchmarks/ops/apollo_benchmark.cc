// The APOLLO update of a matrix, with the making of its projection, against plain loops.
#include <cmath>
#include <vector>

#include "benchmark/benchmark.h"
#include "benchmarks/ops/op_data.h"
#include "ops/apollo.h"

namespace thimble {
namespace {

ApolloOptions Options(int64_t rank) { return {.learning_rate = 1e-3, .weight_decay = 0.1, .rank = rank}; }

struct Problem {
  Problem(int64_t rows, int64_t cols, int64_t rank)
      : grad(rows, cols),
        param(rows, cols, 2),
        m(1, ApolloMomentSize(rows, cols, rank)),
        v(m),
        projection(1, ApolloProjectionSize(rows, cols, rank)),
        memory(ApolloScratchBytes(rows, cols, rank) / sizeof(double) + 8) {
    m.data.assign(m.data.size(), 0);
    v.data.assign(v.data.size(), 0);
  }
  Scratch scratch() { return {memory.data(), static_cast<int64_t>(memory.size() * sizeof(double))}; }
  BenchmarkMatrix grad, param, m, v, projection;
  float norm = 0;
  std::vector<double> memory;
};

void Update(Problem& p, const ApolloOptions& options) {
  ApolloProjection(options, p.grad.rows, p.grad.cols, p.projection.vector());
  ApolloUpdate(p.grad.view(), 1, p.projection.vector(), options, p.param.view(), p.m.vector(), p.v.vector(),
               {&p.norm, 1}, p.scratch());
}

// The first step of a tall matrix, without the limit of the norm, which has nothing to compare with yet.
void NaiveUpdate(Problem& p, const ApolloOptions& options) {
  const int64_t cols = p.grad.cols, rank = options.rank;
  for (int64_t r = 0; r < p.grad.rows; ++r) {
    const float* g = &p.grad.data[r * cols];
    double squares = 0, normalised_squares = 0;
    for (int64_t k = 0; k < rank; ++k) {
      float sum = 0;
      for (int64_t c = 0; c < cols; ++c) sum += g[c] * p.projection.data[k * cols + c];
      float& m = p.m.data[r * rank + k];
      float& v = p.v.data[r * rank + k];
      m = 0.9f * m + 0.1f * sum;
      v = 0.999f * v + 0.001f * sum * sum;
      const float normalised = m / (std::sqrt(v) + 1e-6f);
      squares += sum * sum;
      normalised_squares += normalised * normalised;
    }
    const double factor = std::sqrt(normalised_squares) / (std::sqrt(squares) + 1e-8);
    const double rate = 1e-3 * std::sqrt(0.001) / 0.1 * factor;
    for (int64_t c = 0; c < cols; ++c) {
      float& value = p.param.data[r * cols + c];
      value = static_cast<float>((value - rate * g[c]) * (1 - 1e-4));
    }
  }
}

void BM_ApolloUpdate(benchmark::State& state) {
  const ApolloOptions options = Options(state.range(2));
  Problem problem(state.range(0), state.range(1), options.rank);
  Problem expected = problem;
  Update(problem, options);
  expected.projection = problem.projection;
  NaiveUpdate(expected, options);
  Verify(state, problem.param.data, expected.param.data, 1e-5f);
  for (auto _ : state) Update(problem, options);
  state.SetItemsProcessed(state.iterations() * state.range(0) * state.range(1));
}
BENCHMARK(BM_ApolloUpdate)->ArgNames({"rows", "cols", "rank"})->Args({2048, 2048, 128})->UseRealTime();

void BM_ApolloUpdateNaive(benchmark::State& state) {
  const ApolloOptions options = Options(state.range(2));
  Problem problem(state.range(0), state.range(1), options.rank);
  for (auto _ : state) {
    NaiveUpdate(problem, options);
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * state.range(0) * state.range(1));
}
BENCHMARK(BM_ApolloUpdateNaive)->ArgNames({"rows", "cols", "rank"})->Args({2048, 2048, 128})->UseRealTime();

}  // namespace
}  // namespace thimble
BENCHMARK_MAIN();
