#include "ops/cpu_level.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
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

// By dispatch, as hwy::SupportedTargets asks the processor each time, which on a virtual machine takes 60 us.
CpuLevel ActiveCpuLevel() { return HWY_DYNAMIC_DISPATCH(Level)(); }

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
  static const bool processor_has_it = [] {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & (1u << 5)) != 0;
  }();
  return processor_has_it && ActiveCpuLevel() == CpuLevel::kAvx512;
#else
  return false;
#endif
}

}  // namespace thimble

#endif  // HWY_ONCE
