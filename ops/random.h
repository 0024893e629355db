// Counter-based random numbers: Philox 4x32-10. A value is a function of (seed, stream, index) alone, so any order, any
// thread count and any recompute gives the same values.
// Source: Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"; Random123's test vectors.
#pragma once

#include <array>
#include <cstdint>

#include "ops/view.h"

namespace thimble {

// One block: four 32-bit words from a 128-bit counter and a 64-bit key.
std::array<uint32_t, 4> Philox4x32(const std::array<uint32_t, 4>& counter, const std::array<uint32_t, 2>& key);

// out[k] = the 32 random bits of index first + k. Index i is word i % 4 of the block whose counter is
// (i / 4 low, i / 4 high, stream low, stream high) and whose key is (seed low, seed high). Runs on the calling thread;
// fastest where first is a multiple of 4.
void RandomBits(uint64_t seed, uint64_t stream, uint64_t first, int64_t count, uint32_t* out);

// The upper 24 bits as a multiple of 2^-24 in [0, 1).
inline float UniformFromBits(uint32_t bits) { return static_cast<float>(bits >> 8) * 0x1p-24f; }

// out[k] = low + (high - low) * u(first + k), u uniform in [0, 1); rounding may give high itself.
void RandomUniform(uint64_t seed, uint64_t stream, uint64_t first, float low, float high, Vector out);

// out[k] = mean + stddev * z(first + k), z standard normal: Box-Muller in double on the two words of an even index and
// the odd index behind it, 32 bits each; |z| is at most 6.8.
void RandomNormal(uint64_t seed, uint64_t stream, uint64_t first, float mean, float stddev, Vector out);

}  // namespace thimble
