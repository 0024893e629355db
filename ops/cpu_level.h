// The instruction set that kernels use: what the machine has, or less when the environment asks for less.
#pragma once

#include <cstdint>
#include <string_view>

namespace thimble {

enum class CpuLevel : uint8_t {
  kGeneric,  // vectors of 128 bits at most
  kAvx2,     // AVX2 with FMA
  kAvx512,   // F, VL, BW, DQ, CD
};

// The level of the kernels called now. The environment variable THIMBLE_CPU (generic, avx2 or avx512) lowers it for
// the whole program; it never rises above the machine's. Any other value ends the program with exit code 2 at start.
CpuLevel ActiveCpuLevel();

// "generic", "avx2", "avx512".
std::string_view CpuLevelName(CpuLevel level);

// True when the level is avx512 and the processor has AVX512_BF16.
bool HasBf16Dot();

}  // namespace thimble
