// Inputs of the benchmarks and the check that comes before a time counts.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "benchmark/benchmark.h"
#include "ops/random.h"
#include "ops/view.h"

namespace thimble {

// A matrix of its own with uniform values in [-1, 1).
struct BenchmarkMatrix {
  int64_t rows, cols;
  std::vector<float> data;

  BenchmarkMatrix(int64_t rows, int64_t cols, uint64_t seed = 1) : rows(rows), cols(cols), data(rows * cols) {
    RandomUniform(seed, 0, 0, -1, 1, {data.data(), rows * cols});
  }
  Matrix view() { return {data.data(), rows, cols}; }
  Vector vector() { return {data.data(), rows * cols}; }
};

// Ends the benchmark with an error where an element differs by more than tolerance.
inline void Verify(benchmark::State& state, const std::vector<float>& actual, const std::vector<float>& expected,
                   float tolerance) {
  for (size_t i = 0; i < actual.size(); ++i) {
    if (!(std::abs(actual[i] - expected[i]) <= tolerance)) {
      state.SkipWithError("wrong values");
      return;
    }
  }
}

}  // namespace thimble
