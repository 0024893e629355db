#include "ops/cpu_level.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "hwy/highway.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace thimble {
namespace {

CpuLevel LevelOf(int64_t targets) {
#if defined(__x86_64__)
  if (targets & HWY_AVX3) return CpuLevel::kAvx512;
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
  for (const CpuLevel level : {CpuLevel::kGeneric, CpuLevel::kAvx2, CpuLevel::kAvx512}) {
    if (CpuLevelName(level) != name) continue;
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
  std::fprintf(stderr, "THIMBLE_CPU=%s: expected generic, avx2 or avx512.\n", name);
  std::_Exit(2);
}

[[maybe_unused]] const bool g_applied = ApplyEnvironment();

}  // namespace

CpuLevel ActiveCpuLevel() { return LevelOf(hwy::SupportedTargets()); }

std::string_view CpuLevelName(CpuLevel level) {
  switch (level) {
    case CpuLevel::kGeneric:
      return "generic";
    case CpuLevel::kAvx2:
      return "avx2";
    case CpuLevel::kAvx512:
      return "avx512";
  }
  return "";
}

bool HasBf16Dot() {
#if defined(__x86_64__)
  if (ActiveCpuLevel() != CpuLevel::kAvx512) return false;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & (1u << 5)) != 0;
#else
  return false;
#endif
}

}  // namespace thimble
