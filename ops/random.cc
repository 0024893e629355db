// Philox by vectors: one lane holds one block, and the four words of all lanes are interleaved when stored.
#include "ops/random.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "ops/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/random.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Behind foreach_target.h, which includes this file once a level.
#include "hwy/highway.h"

#ifndef THIMBLE_OPS_RANDOM_CONSTANTS_
#define THIMBLE_OPS_RANDOM_CONSTANTS_
namespace thimble {
constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxM0 = 0xD2511F53, kPhiloxM1 = 0xCD9E8D57;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9, kPhiloxW1 = 0xBB67AE85;
}  // namespace thimble
#endif  // THIMBLE_OPS_RANDOM_CONSTANTS_

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;
using U32 = hn::CappedTag<uint32_t, 16>;

// The high and low halves of a * m, lane by lane.
template <class V>
HWY_INLINE void MulHighLow(V a, V m, V* high, V* low) {
  const U32 d;
  const hn::RepartitionToWide<U32> wide;
  const V even = hn::BitCast(d, hn::MulEven(a, m));
  const V odd = hn::BitCast(d, hn::MulEven(hn::BitCast(d, hn::ShiftRight<32>(hn::BitCast(wide, a))), m));
  // Lane pairs of even: (low, high) of lane 2k; of odd: of lane 2k + 1.
  *low = hn::OddEven(hn::BitCast(d, hn::ShiftLeft<32>(hn::BitCast(wide, odd))), even);
  *high = hn::OddEven(odd, hn::BitCast(d, hn::ShiftRight<32>(hn::BitCast(wide, even))));
}

// Words of the blocks block, block + 1, ... as long as whole vectors of blocks fit; returns the number of blocks done.
// The low half of the block number must not overflow on the way.
int64_t PhiloxBlocks(uint64_t seed, uint64_t stream, uint64_t block, int64_t blocks, uint32_t* out) {
#if HWY_TARGET == HWY_SCALAR
  (void)seed, (void)stream, (void)block, (void)blocks, (void)out;
  return 0;
#else
  const U32 d;
  const int64_t lanes = hn::Lanes(d);
  const auto m0 = hn::Set(d, kPhiloxM0), m1 = hn::Set(d, kPhiloxM1);
  int64_t done = 0;
  for (; done + lanes <= blocks; done += lanes) {
    auto c0 = hn::Iota(d, static_cast<uint32_t>(block + done));
    auto c1 = hn::Set(d, static_cast<uint32_t>(block >> 32));
    auto c2 = hn::Set(d, static_cast<uint32_t>(stream));
    auto c3 = hn::Set(d, static_cast<uint32_t>(stream >> 32));
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < kPhiloxRounds; ++round) {
      auto high0 = c0, low0 = c0, high1 = c0, low1 = c0;
      MulHighLow(c0, m0, &high0, &low0);
      MulHighLow(c2, m1, &high1, &low1);
      c0 = hn::Xor(hn::Xor(high1, c1), hn::Set(d, k0));
      c2 = hn::Xor(hn::Xor(high0, c3), hn::Set(d, k1));
      c1 = low1;
      c3 = low0;
      k0 += kPhiloxW0;
      k1 += kPhiloxW1;
    }
    hn::StoreInterleaved4(c0, c1, c2, c3, d, out + 4 * done);
  }
  return done;
#endif
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace thimble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thimble {
namespace {

HWY_EXPORT(PhiloxBlocks);

constexpr int64_t kGrain = 1 << 14;
constexpr int64_t kChunk = 1024;

std::array<uint32_t, 4> BlockOf(uint64_t seed, uint64_t stream, uint64_t block) {
  return Philox4x32({static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), static_cast<uint32_t>(stream),
                     static_cast<uint32_t>(stream >> 32)},
                    {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
}

// Calls body(bits, k, n): the bits of indices first + k .. first + k + n, in parts that start at even indices but for
// the first.
template <typename Body>
void ForEachChunk(uint64_t seed, uint64_t stream, uint64_t first, int64_t count, const Body& body) {
  const int64_t head = std::min<int64_t>(count, (kChunk - first % kChunk) % kChunk);
  ParallelRanges((count - head + kChunk - 1) / kChunk + (head > 0), kGrain / kChunk, [&](int64_t begin, int64_t end) {
    uint32_t bits[kChunk];
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t k = head > 0 ? (chunk == 0 ? 0 : head + (chunk - 1) * kChunk) : chunk * kChunk;
      const int64_t n = head > 0 && chunk == 0 ? head : std::min(kChunk, count - k);
      RandomBits(seed, stream, first + k, n, bits);
      body(bits, k, n);
    }
  });
}

}  // namespace

std::array<uint32_t, 4> Philox4x32(const std::array<uint32_t, 4>& counter, const std::array<uint32_t, 2>& key) {
  std::array<uint32_t, 4> c = counter;
  std::array<uint32_t, 2> k = key;
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t product0 = uint64_t{kPhiloxM0} * c[0];
    const uint64_t product1 = uint64_t{kPhiloxM1} * c[2];
    c = {static_cast<uint32_t>(product1 >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(product1),
         static_cast<uint32_t>(product0 >> 32) ^ c[3] ^ k[1], static_cast<uint32_t>(product0)};
    k[0] += kPhiloxW0;
    k[1] += kPhiloxW1;
  }
  return c;
}

void RandomBits(uint64_t seed, uint64_t stream, uint64_t first, int64_t count, uint32_t* out) {
  int64_t k = 0;
  while (k < count) {
    const uint64_t index = first + k;
    const uint64_t block = index / 4;
    if (index % 4 == 0) {
      // Up to where the low half of the block number overflows.
      const uint64_t room = (uint64_t{1} << 32) - (block & 0xFFFFFFFF);
      const int64_t blocks = std::min<uint64_t>((count - k) / 4, room);
      const int64_t done = 4 * HWY_DYNAMIC_DISPATCH(PhiloxBlocks)(seed, stream, block, blocks, out + k);
      k += done;
      if (done > 0) continue;
    }
    const std::array<uint32_t, 4> words = BlockOf(seed, stream, block);
    for (uint64_t word = index % 4; word < 4 && k < count; ++word, ++k) out[k] = words[word];
  }
}

void RandomUniform(uint64_t seed, uint64_t stream, uint64_t first, float low, float high, Vector out) {
  const float width = high - low;
  ForEachChunk(seed, stream, first, out.size, [&](const uint32_t* bits, int64_t k, int64_t n) {
    for (int64_t i = 0; i < n; ++i) out[k + i] = low + width * UniformFromBits(bits[i]);
  });
}

void RandomNormal(uint64_t seed, uint64_t stream, uint64_t first, float mean, float stddev, Vector out) {
  const auto pair_of = [](uint32_t radius_bits, uint32_t angle_bits, double* pair) {
    const double radius = std::sqrt(-2 * std::log((radius_bits + 0.5) * 0x1p-32));
    const double angle = angle_bits * (6.283185307179586 * 0x1p-32);
    pair[0] = radius * std::cos(angle);
    pair[1] = radius * std::sin(angle);
  };
  const auto put = [&](int64_t k, double z) { out[k] = static_cast<float>(mean + stddev * z); };
  ForEachChunk(seed, stream, first, out.size, [&](const uint32_t* bits, int64_t k, int64_t n) {
    double pair[2];
    int64_t i = 0;
    if ((first + k) % 2 == 1 && n > 0) {
      uint32_t before;
      RandomBits(seed, stream, first + k - 1, 1, &before);
      pair_of(before, bits[0], pair);
      put(k, pair[1]);
      i = 1;
    }
    for (; i + 2 <= n; i += 2) {
      pair_of(bits[i], bits[i + 1], pair);
      put(k + i, pair[0]);
      put(k + i + 1, pair[1]);
    }
    if (i < n) {
      uint32_t behind;
      RandomBits(seed, stream, first + k + i + 1, 1, &behind);
      pair_of(bits[i], behind, pair);
      put(k + i, pair[0]);
    }
  });
}

}  // namespace thimble
#endif  // HWY_ONCE
