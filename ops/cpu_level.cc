#include "ops/cpu_level.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu_level.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Behind foreach_target.h, which includes this file once a level.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {
namespace {

CpuLevel Level() {
#if defined(__x86_64__)
  if (HWY_TARGET <= HWY_AVX3) return CpuLevel::kAvx512;  // better targets have smaller values
  if (HWY_TARGET <= HWY_AVX2) return CpuLevel::kAvx2;
#endif
  return CpuLevel::kGeneric;
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace thimble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace thimble {
namespace {

HWY_EXPORT(Level);

std::atomic<bool> g_amx_allowed{true};

#if defined(__x86_64__)
bool ProcessorHasBf16Dot() {
  static const bool has = [] {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & (1u << 5)) != 0;
  }();
  return has;
}

// Tiles of bf16, of the size that kernels take, switched on by the system and granted to this process.
bool AskForAmx() {
#if defined(__linux__)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kSavedBySystem = 1u << 27, kBf16 = 1u << 22, kTiles = 1u << 24;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (ecx & kSavedBySystem) == 0) return false;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & kBf16) == 0 || (edx & kTiles) == 0) return false;
  if (!ProcessorHasBf16Dot()) return false;
  // Palette 1: at least 8 tiles of 16 rows of 64 bytes.
  if (!__get_cpuid_count(0x1D, 1, &eax, &ebx, &ecx, &edx)) return false;
  if ((ebx & 0xFFFF) < 64 || (ebx >> 16) < 8 || (ecx & 0xFFFF) < 16) return false;
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kVectorsAndTiles = 0x600E6;
  if ((low & kVectorsAndTiles) != kVectorsAndTiles) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // NOLINT(google-runtime-int)
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

bool MachineHasAmx() {
#if defined(__x86_64__)
  static const bool has = AskForAmx();
  return has;
#else
  return false;
#endif
}

CpuLevel LevelOf(int64_t targets) {
#if defined(__x86_64__)
  if (targets & HWY_AVX3) return MachineHasAmx() ? CpuLevel::kAmx : CpuLevel::kAvx512;
  if (targets & HWY_AVX2) return CpuLevel::kAvx2;
#else
  (void)targets;
#endif
  return CpuLevel::kGeneric;
}

// Applied before main, so that no kernel has been chosen yet.
bool ApplyEnvironment() {
  const char* name = std::getenv("THIMBLE_CPU");
  if (name == nullptr || *name == '\0') return true;
  for (const CpuLevel level : {CpuLevel::kGeneric, CpuLevel::kAvx2, CpuLevel::kAvx512, CpuLevel::kAmx}) {
    if (CpuLevelName(level) != name) continue;
    if (level < CpuLevel::kAmx) g_amx_allowed = false;
    if (level > LevelOf(hwy::SupportedTargets())) {
      std::fprintf(stderr, "THIMBLE_CPU=%s: this machine has only %s, which is used.\n", name,
                   CpuLevelName(LevelOf(hwy::SupportedTargets())).data());
    }
#if defined(__x86_64__)
    constexpr int64_t kAbove2 = HWY_AVX3 | HWY_AVX3_DL;
    if (level == CpuLevel::kAvx2) hwy::DisableTargets(kAbove2);
    if (level == CpuLevel::kGeneric) hwy::DisableTargets(kAbove2 | HWY_AVX2);
#endif
    return true;
  }
  std::fprintf(stderr, "THIMBLE_CPU=%s: expected generic, avx2, avx512 or amx.\n", name);
  std::_Exit(2);
}

[[maybe_unused]] const bool g_applied = ApplyEnvironment();

}  // namespace

// By dispatch, as hwy::SupportedTargets asks the processor each time, which on a virtual machine takes 60 us.
CpuLevel ActiveCpuLevel() {
  const CpuLevel level = HWY_DYNAMIC_DISPATCH(Level)();
  return level == CpuLevel::kAvx512 && g_amx_allowed && MachineHasAmx() ? CpuLevel::kAmx : level;
}

std::string_view CpuLevelName(CpuLevel level) {
  switch (level) {
    case CpuLevel::kGeneric:
      return "generic";
    case CpuLevel::kAvx2:
      return "avx2";
    case CpuLevel::kAvx512:
      return "avx512";
    case CpuLevel::kAmx:
      return "amx";
  }
  return "";
}

bool HasBf16Dot() {
#if defined(__x86_64__)
  return ActiveCpuLevel() >= CpuLevel::kAvx512 && ProcessorHasBf16Dot();
#else
  return false;
#endif
}

bool HasAmx() { return ActiveCpuLevel() == CpuLevel::kAmx; }

void AllowAmxForTest(bool allowed) { g_amx_allowed = allowed; }

}  // namespace thimble

#endif  // HWY_ONCE
