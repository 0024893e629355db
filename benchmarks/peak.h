// What this machine can do, measured in the same run as the benchmark that is compared with it: register FMA, bf16
// dot products and tiles, reading memory. Each figure is of NumThreads() threads and the best of several short runs.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "ops/amx_panel.h"
#include "ops/cpu_level.h"
#include "ops/parallel.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace thimble {
namespace peak_internal {

constexpr int kChains = 12;  // more than latency (4 to 5) times units (2)
constexpr int64_t kSteps = 1000000;
constexpr int64_t kTileSteps = 100000;

inline float FmaGeneric() {
  float sums[kChains * 4] = {};
  for (int64_t i = 0; i < kSteps; ++i) {
    for (float& sum : sums) sum = sum * 0.5f + 1.0f;
  }
  return *std::max_element(sums, sums + kChains * 4);
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) inline float FmaAvx2() {
  __m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0, s8 = s0, s9 = s0,
         s10 = s0, s11 = s0;
  __m256 a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(0.25f);
  for (int64_t i = 0; i < kSteps; ++i) {
    __asm__ volatile(
        "vfmadd231ps %12, %13, %0\n vfmadd231ps %12, %13, %1\n vfmadd231ps %12, %13, %2\n"
        "vfmadd231ps %12, %13, %3\n vfmadd231ps %12, %13, %4\n vfmadd231ps %12, %13, %5\n"
        "vfmadd231ps %12, %13, %6\n vfmadd231ps %12, %13, %7\n vfmadd231ps %12, %13, %8\n"
        "vfmadd231ps %12, %13, %9\n vfmadd231ps %12, %13, %10\n vfmadd231ps %12, %13, %11\n"
        : "+x"(s0), "+x"(s1), "+x"(s2), "+x"(s3), "+x"(s4), "+x"(s5), "+x"(s6), "+x"(s7), "+x"(s8), "+x"(s9), "+x"(s10),
          "+x"(s11)
        : "x"(a), "x"(b));
  }
  return _mm256_cvtss_f32(_mm256_add_ps(s0, s11));
}

__attribute__((target("avx512f"))) inline float FmaAvx512() {
  __m512 s0 = _mm512_setzero_ps(), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0, s8 = s0, s9 = s0,
         s10 = s0, s11 = s0;
  __m512 a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(0.25f);
  for (int64_t i = 0; i < kSteps; ++i) {
    __asm__ volatile(
        "vfmadd231ps %12, %13, %0\n vfmadd231ps %12, %13, %1\n vfmadd231ps %12, %13, %2\n"
        "vfmadd231ps %12, %13, %3\n vfmadd231ps %12, %13, %4\n vfmadd231ps %12, %13, %5\n"
        "vfmadd231ps %12, %13, %6\n vfmadd231ps %12, %13, %7\n vfmadd231ps %12, %13, %8\n"
        "vfmadd231ps %12, %13, %9\n vfmadd231ps %12, %13, %10\n vfmadd231ps %12, %13, %11\n"
        : "+v"(s0), "+v"(s1), "+v"(s2), "+v"(s3), "+v"(s4), "+v"(s5), "+v"(s6), "+v"(s7), "+v"(s8), "+v"(s9), "+v"(s10),
          "+v"(s11)
        : "v"(a), "v"(b));
  }
  return _mm512_cvtss_f32(_mm512_add_ps(s0, s11));
}

__attribute__((target("avx512f,avx512bf16"))) inline float DotBf16() {
  __m512 s0 = _mm512_setzero_ps(), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0, s6 = s0, s7 = s0, s8 = s0, s9 = s0,
         s10 = s0, s11 = s0;
  __m512i a = _mm512_set1_epi32(0x3f003f00), b = _mm512_set1_epi32(0x3e803e80);
  for (int64_t i = 0; i < kSteps; ++i) {
    __asm__ volatile(
        "vdpbf16ps %12, %13, %0\n vdpbf16ps %12, %13, %1\n vdpbf16ps %12, %13, %2\n"
        "vdpbf16ps %12, %13, %3\n vdpbf16ps %12, %13, %4\n vdpbf16ps %12, %13, %5\n"
        "vdpbf16ps %12, %13, %6\n vdpbf16ps %12, %13, %7\n vdpbf16ps %12, %13, %8\n"
        "vdpbf16ps %12, %13, %9\n vdpbf16ps %12, %13, %10\n vdpbf16ps %12, %13, %11\n"
        : "+v"(s0), "+v"(s1), "+v"(s2), "+v"(s3), "+v"(s4), "+v"(s5), "+v"(s6), "+v"(s7), "+v"(s8), "+v"(s9), "+v"(s10),
          "+v"(s11)
        : "v"(a), "v"(b));
  }
  return _mm512_cvtss_f32(_mm512_add_ps(s0, s11));
}

// Four accumulators, as many as a kernel has: 16 x 16 sums of 32 products a tile instruction.
inline float DotAmx() {
  const AmxScope tiles;
  for (int64_t i = 0; i < kTileSteps; ++i) {
    __asm__ volatile(
        "tdpbf16ps %tmm4, %tmm6, %tmm0\n tdpbf16ps %tmm4, %tmm7, %tmm1\n"
        "tdpbf16ps %tmm5, %tmm6, %tmm2\n tdpbf16ps %tmm5, %tmm7, %tmm3\n");
  }
  return 0;
}

__attribute__((target("avx2"))) inline float SumAvx2(const float* p, int64_t count) {
  __m256 s[8];
  for (__m256& sum : s) sum = _mm256_setzero_ps();
  for (int64_t i = 0; i + 64 <= count; i += 64) {
    for (int j = 0; j < 8; ++j) s[j] = _mm256_add_ps(s[j], _mm256_loadu_ps(p + i + 8 * j));
  }
  for (int j = 1; j < 8; ++j) s[0] = _mm256_add_ps(s[0], s[j]);
  return _mm256_cvtss_f32(s[0]);
}
#endif

inline float SumGeneric(const float* p, int64_t count) {
  float s[16] = {};
  for (int64_t i = 0; i + 16 <= count; i += 16) {
    for (int j = 0; j < 16; ++j) s[j] += p[i + j];
  }
  return s[0] + s[7];
}

// Largest work / second over `runs` runs of body, `work` being what all threads do in one run.
template <typename Body>
double BestRate(int runs, double work, const Body& body) {
  double best = 0;
  for (int run = 0; run < runs; ++run) {
    const auto start = std::chrono::steady_clock::now();
    volatile float sink = 0;
    ParallelFor(NumThreads(), [&](int64_t i, int) {
      const float value = body(i);
      if (value == -1.0f) sink = value;
    });
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, work / seconds.count());
  }
  return best;
}

// The sum of the threads' own best rates: on a shared machine all threads are rarely undisturbed together.
template <typename Body>
double SumOfBestRates(int runs, double work, const Body& body) {
  const int threads = NumThreads();
  std::vector<double> best(threads, 0);
  for (int run = 0; run < runs; ++run) {
    BestRate(1, work, [&](int64_t i) {
      const auto start = std::chrono::steady_clock::now();
      const float value = body(i);
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      best[i] = std::max(best[i], work / threads / seconds.count());
      return value;
    });
  }
  double sum = 0;
  for (const double rate : best) sum += rate;
  return sum;
}

}  // namespace peak_internal

// Sets the number of threads for its lifetime.
class ThreadScope {
 public:
  explicit ThreadScope(int threads) : before_(NumThreads()) { SetNumThreads(threads); }
  ~ThreadScope() { SetNumThreads(before_); }
  ThreadScope(const ThreadScope&) = delete;

 private:
  int before_;
};

// Register FMA in f32 at the active CPU level, GFLOP/s.
inline double PeakF32Gflops(int runs = 20) {
  using namespace peak_internal;  // NOLINT(google-build-using-namespace)
  const double steps = 2.0 * kChains * kSteps * NumThreads() * 1e-9;
#if defined(__x86_64__)
  if (ActiveCpuLevel() >= CpuLevel::kAvx512)
    return SumOfBestRates(runs, 16 * steps, [](int64_t) { return FmaAvx512(); });
  if (ActiveCpuLevel() == CpuLevel::kAvx2) return SumOfBestRates(runs, 8 * steps, [](int64_t) { return FmaAvx2(); });
#endif
  return SumOfBestRates(runs, 4 * steps, [](int64_t) { return FmaGeneric(); });
}

// Register bf16 dot products at the active CPU level, GFLOP/s; 0 where the processor has none.
inline double PeakBf16DotGflops(int runs = 20) {
  using namespace peak_internal;  // NOLINT(google-build-using-namespace)
  if (!HasBf16Dot()) return 0;
#if defined(__x86_64__)
  const double steps = 2.0 * kChains * kSteps * NumThreads() * 1e-9;
  return SumOfBestRates(runs, 32 * steps, [](int64_t) { return DotBf16(); });
#else
  return 0;
#endif
}

// AMX tile products of bf16 at the active CPU level, GFLOP/s; 0 where the processor has none.
inline double PeakBf16TileGflops(int runs = 20) {
  using namespace peak_internal;  // NOLINT(google-build-using-namespace)
  if (!HasAmx()) return 0;
#if defined(__x86_64__)
  const double work = 4 * 2.0 * 16 * 16 * 32 * kTileSteps * NumThreads() * 1e-9;
  return SumOfBestRates(runs, work, [](int64_t) { return DotAmx(); });
#else
  return 0;
#endif
}

// The largest of the ways to multiply with bf16 operands.
inline double PeakBf16Gflops(int runs = 20) {
  return std::max({PeakF32Gflops(runs), PeakBf16DotGflops(runs), PeakBf16TileGflops(runs)});
}

// Reading memory front to back, GB/s: 128 MiB a run, all threads together.
inline double PeakReadGBs(int runs = 6) {
  using namespace peak_internal;  // NOLINT(google-build-using-namespace)
  const int64_t count = (int64_t{32} << 20) / NumThreads();
  const std::vector<float> values(count * NumThreads(), 1.0f);
  return BestRate(runs, 4e-9 * static_cast<double>(values.size()), [&](int64_t i) {
    const float* part = values.data() + i * count;
#if defined(__x86_64__)
    if (ActiveCpuLevel() != CpuLevel::kGeneric) return SumAvx2(part, count);
#endif
    return SumGeneric(part, count);
  });
}

}  // namespace thimble
