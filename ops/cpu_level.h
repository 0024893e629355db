// The instruction set that kernels use: what the machine has, or less when the environment asks for less.
#pragma once

#include <cstdint>
#include <string_view>

namespace thimble {

enum class CpuLevel : uint8_t {
  kGeneric,  // vectors of 128 bits at most
  kAvx2,     // AVX2 with FMA
  kAvx512,   // F, VL, BW, DQ, CD
  kAmx,      // the same with AMX tiles of bf16, for products with bf16 operands
};

// The level of the kernels called now. The environment variable THIMBLE_CPU (generic, avx2, avx512 or amx) lowers it
// for the whole program; it never rises above the machine's. Any other value ends the program with exit code 2 at
// start.
CpuLevel ActiveCpuLevel();

// "generic", "avx2", "avx512", "amx".
std::string_view CpuLevelName(CpuLevel level);

// True when the level is avx512 or amx and the processor has AVX512_BF16.
bool HasBf16Dot();

// True when the level is amx: the processor has AMX with bf16 and AVX512_BF16, and the system lets this process use
// tiles (asked for once; refused, for one, on a kernel older than 5.16).
bool HasAmx();

// Takes AMX away from the program, or gives it back where the machine has it.
void AllowAmxForTest(bool allowed);

}  // namespace thimble
