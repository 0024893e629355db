// Matrix products in GFLOP/s and as a fraction of the register peak of the same run ("peak", measured beside each case:
// FMA for f32, the fastest of FMA, dot products and tiles for bf16), for every form and format, 1 and 2 threads;
// one-row products in GB/s of weights read. A plain twin verifies each result before it is timed.
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstring>
#include <ctime>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "benchmarks/peak.h"
#include "ops/matmul.h"
#include "ops/memory_block.h"
#include "ops/quantize_4bit.h"

namespace thimble {
namespace {

enum class Form { kNT, kNN, kTN };

std::vector<float> Values(int64_t count, uint32_t state) {
  std::vector<float> values(count);
  for (float& value : values) {
    state = state * 1664525 + 1013904223;
    value = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
  }
  return values;
}

// Zeros in such memory as a run's arena is.
class AlignedFloats {
 public:
  explicit AlignedFloats(int64_t count) : memory_(count * static_cast<int64_t>(sizeof(float))), size_(count) {}
  float* data() const { return reinterpret_cast<float*>(memory_.data()); }
  int64_t size() const { return size_; }
  float operator[](int64_t i) const { return data()[i]; }

 private:
  MemoryBlock memory_;
  int64_t size_;
};

// A weight [rows, cols] and its storage.
struct Weight {
  Weight(Format format, int64_t rows, int64_t cols) : floats(rows * cols) {
    const std::vector<float> values = Values(rows * cols, 7);
    std::copy(values.begin(), values.end(), floats.data());
    view = WeightView(floats.data(), rows, cols);
    if (format == Format::kF32) return;
    if (format == Format::kNF4 || format == Format::kFP4) {
      WeightQuantizer quantizer(format, rows, cols, 64, true);
      quantizer.Push({values.data(), rows * cols});
      quantized = quantizer.Finish();
      view = quantized.View();
    } else {
      for (const float value : values) {
        halves.push_back(format == Format::kBF16 ? FloatToBF16(value) : FloatToF16(value));
      }
      view.format = format;
      view.data = halves.data();
    }
    for (int64_t r = 0; r < rows; ++r) DecodeRowPortable(view, r, 0, cols, floats.data() + r * cols);
  }
  WeightView view;
  AlignedFloats floats;  // decoded
  std::vector<uint16_t> halves;
  QuantizedWeight quantized;
};

float Rounded(float value, Compute compute) {
  return compute == Compute::kBF16 ? BF16ToFloat(FloatToBF16(value)) : value;
}

// The plain twin: one dot product in double; l-th terms are a[l * a_step] * b[l * b_step].
bool Near(float actual, const float* a, int64_t a_step, const float* b, int64_t b_step, int64_t count,
          Compute compute) {
  double sum = 0, magnitude = 0;
  for (int64_t l = 0; l < count; ++l) {
    const double product = double{Rounded(a[l * a_step], compute)} * Rounded(b[l * b_step], compute);
    sum += product;
    magnitude += std::abs(product);
  }
  return std::abs(actual - sum) <= 1e-5 * magnitude;
}

// Of all threads of this process.
double CpuSeconds() {
  timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

struct Case {
  Form form;
  Compute compute;
  int64_t rows, in, out;
};

// A few hundred elements of y over all rows and columns.
bool Verified(const Case& c, const float* a, const float* b, const AlignedFloats& y) {
  const int64_t cols = c.form == Form::kNT ? c.out : c.in;
  for (int64_t i = 0; i < y.size(); i += 1 + y.size() / 307) {
    const int64_t r = i / cols, j = i % cols;
    const bool near = c.form == Form::kNT   ? Near(y[i], &a[r * c.in], 1, &b[j * c.in], 1, c.in, c.compute)
                      : c.form == Form::kNN ? Near(y[i], &a[r * c.out], 1, &b[j], c.in, c.out, c.compute)
                                            : Near(y[i], &a[r], c.out, &b[j], c.in, c.rows, c.compute);
    if (!near) return false;
  }
  return true;
}

void BM_MatMul(benchmark::State& state, Format format, Case c) {
  const ThreadScope threads(static_cast<int>(state.range(0)));
  const Weight weight(format, c.form == Form::kTN ? c.rows : c.out, c.in);
  const std::vector<float> values = Values(c.rows * (c.form == Form::kNT ? c.in : c.out), 1);
  const AlignedFloats a(static_cast<int64_t>(values.size()));
  std::copy(values.begin(), values.end(), a.data());
  const AlignedFloats y(c.form == Form::kNT ? c.rows * c.out : c.form == Form::kNN ? c.rows * c.in : c.out * c.in);
  const int64_t bytes = MatMulScratchBytes(c.compute, c.rows, c.in, c.out);
  const MemoryBlock memory(bytes);
  const Scratch scratch = {memory.data(), bytes};
  const MatMulOptions options = {c.compute};
  double best = 1e30, best_cpu = 1e30;
  const auto run = [&] {
    const auto start = std::chrono::steady_clock::now();
    const double cpu_start = CpuSeconds();
    if (c.form == Form::kNT) {
      MatMulNT({a.data(), c.rows, c.in}, weight.view, {y.data(), c.rows, c.out}, options, scratch);
    } else if (c.form == Form::kNN) {
      MatMulNN({a.data(), c.rows, c.out}, weight.view, {y.data(), c.rows, c.in}, options, scratch);
    } else {
      MatMulTN({a.data(), c.rows, c.out}, {weight.floats.data(), c.rows, c.in}, {y.data(), c.out, c.in}, options,
               scratch);
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::min(best, seconds.count());
    best_cpu = std::min(best_cpu, CpuSeconds() - cpu_start);
  };
  run();
  if (!Verified(c, a.data(), weight.floats.data(), y)) return state.SkipWithError("wrong product");
  const auto measure_peak = [&] { return c.compute == Compute::kBF16 ? PeakBf16Gflops(4) : PeakF32Gflops(4); };
  const double peak = measure_peak();
  for (auto _ : state) run();
  const double flops = 2e-9 * static_cast<double>(c.rows * c.in * c.out);
  // The best run: other programs on the machine slow the rest.
  state.counters["GFLOPs"] = flops / best;
  state.counters["peak"] = std::max(peak, measure_peak());
  state.counters["fraction"] = flops / best / state.counters["peak"];
  // By processor time, as though other programs took no turns: threads spin while they wait for each other.
  const double one_thread_peak = state.counters["peak"] / static_cast<double>(state.range(0));
  state.counters["cpu_fraction"] = flops / best_cpu / one_thread_peak;
  if (c.rows <= 4) {
    const FormatInfo& info = InfoOf(c.form == Form::kTN ? Format::kF32 : format);
    const double bytes = static_cast<double>(info.bytes_per_block) / info.values_per_block;
    state.counters["GB/s"] = bytes * static_cast<double>(c.in * c.out) * 1e-9 / best;
    state.counters["read_peak_GB/s"] = PeakReadGBs(3);
  }
}

void Register(const std::string& name, Form form, Compute compute, Format format, int64_t rows, int64_t in,
              int64_t out) {
  const std::string full = "BM_MatMul" + name + (compute == Compute::kBF16 ? "/compute:bf16" : "") +
                           "/format:" + std::string(InfoOf(format).name) + "/rows:" + std::to_string(rows) +
                           "/in:" + std::to_string(in) + "/out:" + std::to_string(out);
  benchmark::RegisterBenchmark(full.c_str(),
                               [=](benchmark::State& state) {
                                 BM_MatMul(state, format, {form, compute, rows, in, out});
                               })
      ->ArgName("threads")
      ->Arg(1)
      ->Arg(2)
      ->UseRealTime()
      ->MinTime(0.4);
}

void RegisterAll() {
  for (const Format format : {Format::kF32, Format::kBF16, Format::kNF4}) {
    for (const auto& [rows, in, out] : {std::array<int64_t, 3>{512, 4096, 4096},
                                        {512, 896, 4864},
                                        {512, 4864, 896},
                                        {64, 256, 256},
                                        {1024, 256, 1024},
                                        {512, 4096, 16},
                                        {512, 16, 4096},
                                        {1, 4096, 4096},
                                        {2, 4096, 4096},
                                        {4, 4096, 4096}}) {
      Register("NT", Form::kNT, Compute::kF32, format, rows, in, out);
    }
    for (const auto& [rows, in, out] : {std::array<int64_t, 3>{512, 4096, 4096}, {512, 896, 4864}, {64, 256, 256}}) {
      for (const Compute compute : {Compute::kF32, Compute::kBF16}) {
        Register("NN", Form::kNN, compute, format, rows, in, out);
      }
      Register("NT", Form::kNT, Compute::kBF16, format, rows, in, out);
    }
    for (const auto& [rows, in, out] : {std::array<int64_t, 3>{512, 4096, 16}, {512, 16, 4096}, {1, 4096, 4096}}) {
      Register("NT", Form::kNT, Compute::kBF16, format, rows, in, out);
    }
  }
  for (const auto& [rows, in, out] :
       {std::array<int64_t, 3>{512, 4096, 4096}, {512, 896, 4864}, {64, 256, 256}, {512, 4096, 16}, {512, 16, 4096}}) {
    for (const Compute compute : {Compute::kF32, Compute::kBF16}) {
      Register("TN", Form::kTN, compute, Format::kF32, rows, in, out);
    }
  }
}

}  // namespace
}  // namespace thimble

int main(int argc, char** argv) {
  thimble::RegisterAll();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
