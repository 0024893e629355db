#include "trainer/machine_rates.h"

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "data/file.h"
#include "nlohmann/json.hpp"
#include "ops/attention.h"
#include "ops/busy_timer.h"
#include "ops/compute_rate.h"
#include "ops/cpu_level.h"
#include "ops/elementwise.h"
#include "ops/memory_block.h"
#include "ops/parallel.h"
#include "ops/scratch_buffer.h"
#include "trainer/tier.h"

namespace thimble {
namespace {

// Where there is no memory to measure in.
constexpr double kUnknownCopy = 5e9;

// To be raised when a measurement changes.
constexpr int kFileVersion = 6;

// Several runs over about a tenth of a second; `prepare` is not counted.
template <typename Body>
BusyTimer Measure(
    const Body& body, const std::function<void()>& prepare = [] {}) {
  constexpr double kBudget = 0.1;
  using Clock = std::chrono::steady_clock;
  BusyTimer timer;
  const Clock::time_point start = Clock::now();
  for (int run = 0; run < 3 || std::chrono::duration<double>(Clock::now() - start).count() < kBudget; ++run) {
    prepare();
    timer.Run(body);
  }
  return timer;
}

// What a step reads was written long before: caches, which may hold hundreds of MiB, are not to help.
void LeaveCaches(const void* data, int64_t bytes) {
#if defined(__SSE2__)
  for (int64_t at = 0; at < bytes; at += 64) _mm_clflush(static_cast<const char*>(data) + at);
  _mm_mfence();
#else
  (void)data;
  (void)bytes;
#endif
}

// y = a + b over 36 MiB.
double MeasureMemory() {
  constexpr int64_t kCount = int64_t{3} << 20;
  constexpr int64_t kBytes = kCount * static_cast<int64_t>(sizeof(float));
  std::vector<float> a(kCount, 1), b(kCount, 2), y(kCount);
  const auto add = [&] { Add({a.data(), 1, kCount}, {b.data(), 1, kCount}, {y.data(), 1, kCount}); };
  const BusyTimer timer = Measure(add, [&] {
    for (const std::vector<float>* v : {&a, &b, &y}) LeaveCaches(v->data(), kBytes);
  });
  return 3.0 * kBytes / timer.Seconds();
}

// As saved values move: there, and much later back.
double MeasureCopy() {
  constexpr int64_t kBytes = int64_t{32} << 20;
  absl::StatusOr<std::unique_ptr<Tier>> tier = MakeHostTier(kBytes);
  const MemoryBlock block(kBytes);
  if (!tier.ok() || !block.ok()) return kUnknownCopy;
  const auto there_and_back = [&] {
    (*tier)->Wait((*tier)->Put(block.data(), 0, kBytes)).IgnoreError();  // host memory does not fail
    (*tier)->Wait((*tier)->Get(0, block.data(), kBytes)).IgnoreError();
  };
  // A kernel has just written what leaves, and where it comes back.
  const BusyTimer timer = Measure(there_and_back, [&block] { std::memset(block.data(), 1, kBytes); });
  return 2.0 * kBytes / ((*tier)->mode() == Tier::Mode::kAtOnce ? timer.Seconds() : timer.WallSeconds());
}

// Through the page cache, as a spill file is used.
double MeasureDisk() {
  constexpr int64_t kBytes = int64_t{32} << 20;
  constexpr double kSlow = 1e8;  // where there is no place for a spill file
  absl::StatusOr<std::unique_ptr<Tier>> tier = MakeDiskTier("", kBytes);
  if (!tier.ok()) return kSlow;
  std::vector<char> bytes(kBytes, 1);
  bool ok = true;
  const BusyTimer timer = Measure([&] {
    ok = (*tier)->Wait((*tier)->Put(bytes.data(), 0, kBytes)).ok() &&
         (*tier)->Wait((*tier)->Get(0, bytes.data(), kBytes)).ok();
  });
  return ok ? 2.0 * kBytes / timer.WallSeconds() : kSlow;
}

// Forward, one sample of 512 tokens, four heads of the usual width: a few milliseconds.
double MeasureAttention(Compute compute) {
  constexpr int64_t kTokens = 512;
  AttentionShape shape;
  shape.num_heads = 4;
  shape.num_kv_heads = 2;
  shape.head_dim = 64;
  shape.scale = 0.125f;
  shape.compute = compute;
  const int64_t q_cols = shape.num_heads * shape.head_dim;
  const int64_t kv_cols = shape.num_kv_heads * shape.head_dim;
  std::vector<float> q(kTokens * q_cols, 0.5f), k(kTokens * kv_cols, 0.25f), v(k), out(q.size());
  std::vector<float> lse(kTokens * shape.num_heads);
  std::vector<int32_t> starts(kTokens, 0);
  const int64_t bytes = AttentionScratchBytes(shape, kTokens);
  const ScratchBuffer memory(bytes);
  const BusyTimer timer = Measure([&] {
    AttentionForward({q.data(), kTokens, q_cols}, {k.data(), kTokens, kv_cols}, {v.data(), kTokens, kv_cols},
                     {starts.data(), kTokens}, shape, {out.data(), kTokens, q_cols},
                     {lse.data(), kTokens, shape.num_heads}, memory.view());
  });
  return 4.0 * (kTokens + 1) / 2 * kTokens * static_cast<double>(q_cols) / timer.Seconds();
}

// What the rates depend on.
std::string MachineName() {
  std::string model = "unknown processor";
  const absl::StatusOr<std::string> cpuinfo = ReadFile("/proc/cpuinfo");
  if (cpuinfo.ok()) {
    for (absl::string_view line : absl::StrSplit(*cpuinfo, '\n')) {
      if (!absl::StartsWith(line, "model name")) continue;
      model = std::string(absl::StripAsciiWhitespace(line.substr(line.find(':') + 1)));
      break;
    }
  }
  return absl::StrCat(model, ", ", std::string(CpuLevelName(ActiveCpuLevel())), ", ", NumThreads(), " threads");
}

bool IsRate(double rate) { return std::isfinite(rate) && rate > 0; }

bool ReadRates(const std::string& path, const std::string& machine, MachineRates* rates) {
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return false;
  const nlohmann::json json = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || json.value("version", nlohmann::json()) != kFileVersion) return false;
  if (json.value("machine", nlohmann::json()) != machine) return false;
  for (const auto& [name, rate] : {std::pair<const char*, double*>{"f32_flops", &rates->f32_flops},
                                   {"bf16_flops", &rates->bf16_flops},
                                   {"attention_f32_flops", &rates->attention_f32_flops},
                                   {"attention_bf16_flops", &rates->attention_bf16_flops},
                                   {"memory_bytes", &rates->memory_bytes},
                                   {"copy_bytes", &rates->copy_bytes},
                                   {"disk_bytes", &rates->disk_bytes}}) {
    const nlohmann::json value = json.value(name, nlohmann::json());
    if (!value.is_number() || !IsRate(value.get<double>())) return false;
    *rate = value.get<double>();
  }
  return true;
}

}  // namespace

MachineRates MeasureMachineRates() {
  const ComputeRates matmul = MeasureComputeRates();
  MachineRates rates;
  rates.f32_flops = matmul.f32_gflops * 1e9;
  rates.bf16_flops = matmul.bf16_gflops * 1e9;
  rates.attention_f32_flops = MeasureAttention(Compute::kF32);
  rates.attention_bf16_flops = MeasureAttention(Compute::kBF16);
  rates.memory_bytes = MeasureMemory();
  rates.copy_bytes = MeasureCopy();
  rates.disk_bytes = MeasureDisk();
  return rates;
}

std::string MachineRatesPath() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && cache[0] == '/') return absl::StrCat(cache, "/thimble/machine_rates.json");
  const char* home = std::getenv("HOME");
  if (home == nullptr || home[0] != '/') return "";
  return absl::StrCat(home, "/.cache/thimble/machine_rates.json");
}

MachineRates LoadOrMeasureRates(const std::string& path) {
  const std::string machine = MachineName();
  MachineRates rates;
  if (!path.empty() && ReadRates(path, machine, &rates)) return rates;
  rates = MeasureMachineRates();
  if (path.empty()) return rates;
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), error);
  if (error) return rates;
  const nlohmann::ordered_json json = {{"version", kFileVersion},
                                       {"machine", machine},
                                       {"f32_flops", rates.f32_flops},
                                       {"bf16_flops", rates.bf16_flops},
                                       {"attention_f32_flops", rates.attention_f32_flops},
                                       {"attention_bf16_flops", rates.attention_bf16_flops},
                                       {"memory_bytes", rates.memory_bytes},
                                       {"copy_bytes", rates.copy_bytes},
                                       {"disk_bytes", rates.disk_bytes}};
  WriteFileAtomically(path, json.dump(2) + "\n").IgnoreError();
  return rates;
}

}  // namespace thimble
