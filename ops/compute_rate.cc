#include "ops/compute_rate.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "absl/strings/str_format.h"
#include "ops/busy_timer.h"
#include "ops/cpu_level.h"
#include "ops/matmul.h"
#include "ops/matmul_bf16.h"
#include "ops/parallel.h"
#include "ops/scratch_buffer.h"

namespace thimble {
namespace {

using Clock = std::chrono::steady_clock;

// 0.13 GFLOP: a millisecond or so, and panels of every kind are in use.
constexpr int64_t kRows = 256, kInner = 512, kCols = 512;
constexpr double kMeasureSeconds = 0.1;
constexpr int kMinRuns = 3;
constexpr double kMinGain = 1.1;

std::string_view NameOf(Bf16Path path) {
  switch (path) {
    case Bf16Path::kRounded:
      return "rounded to bf16, multiplied as f32";
    case Bf16Path::kDot:
      return "vdpbf16ps";
    case Bf16Path::kTiles:
      return "AMX";
    case Bf16Path::kDistrust:
      return "rounded to bf16, multiplied as f32: this processor's vdpbf16ps failed its check";
  }
  return "";
}

}  // namespace

ComputeRates MeasureComputeRates() {
  std::vector<float> x(kRows * kInner, 0.5f), w(kCols * kInner, 0.25f), y(kRows * kCols);
  const int64_t bytes = std::max(MatMulScratchBytes(), MatMulScratchBytes(Compute::kBF16, kRows, kInner, kCols));
  const ScratchBuffer memory(bytes);
  BusyTimer f32, bf16;
  const auto run = [&](Compute compute, BusyTimer* timer) {
    timer->Run([&] {
      MatMulNT({x.data(), kRows, kInner}, {w.data(), kCols, kInner}, {y.data(), kRows, kCols}, {compute},
               memory.view());
    });
  };
  const Clock::time_point start = Clock::now();
  // In turns, so that whatever else the machine does meets both.
  for (int i = 0; i < kMinRuns || std::chrono::duration<double>(Clock::now() - start).count() < kMeasureSeconds; ++i) {
    run(Compute::kF32, &f32);
    run(Compute::kBF16, &bf16);
  }
  constexpr double kGflop = 2e-9 * kRows * kInner * kCols;
  ComputeRates rates = {kGflop / f32.Seconds(), kGflop / bf16.Seconds(), Compute::kF32, ""};
  // Rounding first and multiplying as f32 is never faster: what a busy machine makes of it is chance.
  const bool native = ActiveBf16Path() == Bf16Path::kDot || ActiveBf16Path() == Bf16Path::kTiles;
  if (native && rates.bf16_gflops >= kMinGain * rates.f32_gflops) rates.choice = Compute::kBF16;
  rates.reason = absl::StrFormat(
      "%s: f32 %.0f GFLOP/s, bf16 %.0f GFLOP/s (%s), %d threads, %s; bf16 is chosen where the processor multiplies it "
      "a tenth faster",
      rates.choice == Compute::kBF16 ? "bf16" : "f32", rates.f32_gflops, rates.bf16_gflops,
      std::string(NameOf(ActiveBf16Path())), NumThreads(), std::string(CpuLevelName(ActiveCpuLevel())));
  return rates;
}

}  // namespace thimble
