#include "ops/quantize_4bit.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "ops/check.h"
#include "ops/dynamic_map.h"
#include "ops/parallel.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace thimble {
namespace {

constexpr float kSmallestAbsmax = 1e-38f;
constexpr uint32_t kInfinityBits = 0x7f800000;

// Thresholds between neighbouring values, increasing, and the code of each of the 16 intervals. A value on a threshold
// belongs below it.
struct Encoder {
  float thresholds[15];
  int32_t order[16];
};

Encoder MakeEncoder(Format format) {
  // fp4 by value; the lower of its two zeros is code 0, so (-t, 0] is code 0 and (0, t] code 8.
  constexpr int32_t kFP4Order[16] = {11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3};
  const float* codebook = Codebook(format);
  Encoder encoder;
  for (int i = 0; i < 16; ++i) encoder.order[i] = format == Format::kFP4 ? kFP4Order[i] : i;
  for (int i = 0; i < 15; ++i) {
    encoder.thresholds[i] = (codebook[encoder.order[i]] + codebook[encoder.order[i + 1]]) / 2;
  }
  return encoder;
}

uint8_t Encode(const Encoder& encoder, float value) {
  int interval = 0;
  for (int half = 8; half > 0; half /= 2) interval += value > encoder.thresholds[interval + half - 1] ? half : 0;
  return static_cast<uint8_t>(encoder.order[interval]);
}

uint32_t MagnitudeBits(float value) { return std::bit_cast<uint32_t>(value) & 0x7fffffff; }

// The bits of max |w|; magnitudes order as their bits do, and NaN is above infinity.
uint32_t AbsmaxBits(const float* values, int64_t count) {
  uint32_t bits = 0;
  for (int64_t i = 0; i < count; ++i) bits = std::max(bits, MagnitudeBits(values[i]));
  return bits;
}

// A full block; returns the bits of its absmax.
uint32_t EncodeBlockPortable(const Encoder& encoder, const float* values, int64_t count, uint8_t* codes) {
  const uint32_t bits = AbsmaxBits(values, count);
  const float scale = 1.0f / std::max(std::bit_cast<float>(bits), kSmallestAbsmax);
  for (int64_t i = 0; i < count; i += 2) {
    codes[i / 2] =
        static_cast<uint8_t>(Encode(encoder, values[i] * scale) << 4 | Encode(encoder, values[i + 1] * scale));
  }
  return bits;
}

// The last block of a weight when it is shorter than block_size.
uint32_t EncodeShortBlock(const Encoder& encoder, const float* values, int64_t count, uint8_t* codes, float* absmax) {
  const uint32_t bits = AbsmaxBits(values, count);
  *absmax = std::max(std::bit_cast<float>(bits), kSmallestAbsmax);
  for (int64_t i = 0; i < count; i += 2) {
    const float second = i + 1 < count ? values[i + 1] / *absmax : 0.0f;
    codes[i / 2] = static_cast<uint8_t>(Encode(encoder, values[i] / *absmax) << 4 | Encode(encoder, second));
  }
  return bits;
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) uint32_t EncodeBlockAvx2(const Encoder& encoder, const float* values, int64_t count,
                                                         uint8_t* codes) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i largest = _mm256_setzero_si256();
  for (int64_t i = 0; i < count; i += 8) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + i));
    largest = _mm256_max_epi32(largest, _mm256_and_si256(bits, magnitude));
  }
  alignas(32) uint32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), largest);
  const uint32_t bits = *std::max_element(lanes, lanes + 8);
  const __m256 scale = _mm256_set1_ps(1.0f / std::max(std::bit_cast<float>(bits), kSmallestAbsmax));

  // The four levels of the binary search; the permutes read as many low bits of the index as a level has entries.
  const float* t = encoder.thresholds;
  const __m256 level0 = _mm256_set1_ps(t[7]);
  const __m256 level1 = _mm256_setr_ps(t[3], t[11], t[3], t[11], t[3], t[11], t[3], t[11]);
  const __m256 level2 = _mm256_setr_ps(t[1], t[5], t[9], t[13], t[1], t[5], t[9], t[13]);
  const __m256 level3 = _mm256_setr_ps(t[0], t[2], t[4], t[6], t[8], t[10], t[12], t[14]);
  const __m256i low_order = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(encoder.order));
  const __m256i high_order = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(encoder.order + 8));
  for (int64_t i = 0; i < count; i += 8) {
    const __m256 value = _mm256_mul_ps(_mm256_loadu_ps(values + i), scale);
    // A comparison that holds is -1 in every bit: subtracting it adds one.
    __m256i index = _mm256_srli_epi32(_mm256_castps_si256(_mm256_cmp_ps(value, level0, _CMP_GT_OQ)), 31);
    for (const __m256& level : {level1, level2, level3}) {
      const __m256 above = _mm256_cmp_ps(value, _mm256_permutevar8x32_ps(level, index), _CMP_GT_OQ);
      index = _mm256_sub_epi32(_mm256_add_epi32(index, index), _mm256_castps_si256(above));
    }
    const __m256 code = _mm256_blendv_ps(_mm256_castsi256_ps(_mm256_permutevar8x32_epi32(low_order, index)),
                                         _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(high_order, index)),
                                         _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
    // Byte 0 of each 64-bit lane becomes a pair of codes, the even element in the high nibble.
    const __m256i wide = _mm256_castps_si256(code);
    const __m256i pairs = _mm256_or_si256(_mm256_slli_epi64(wide, 4), _mm256_srli_epi64(wide, 32));
    const __m256i bytes =
        _mm256_shuffle_epi8(pairs, _mm256_setr_epi8(0, 8, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 8,
                                                    -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
    const uint32_t word = static_cast<uint32_t>(_mm_cvtsi128_si32(_mm256_castsi256_si128(bytes))) |
                          static_cast<uint32_t>(_mm_cvtsi128_si32(_mm256_extracti128_si256(bytes, 1))) << 16;
    std::memcpy(codes + i / 2, &word, sizeof(word));
  }
  return bits;
}
#endif

using EncodeBlock = uint32_t (*)(const Encoder&, const float*, int64_t, uint8_t*);

EncodeBlock BestEncodeBlock() {
#if defined(__x86_64__)
  static const bool avx2 = __builtin_cpu_supports("avx2");
  if (avx2) return EncodeBlockAvx2;
#endif
  return EncodeBlockPortable;
}

// torch.sum of f32 on one x86 thread (aten/src/ATen/native/cpu/SumKernel.cpp, its AVX2 form also where AVX-512 is):
// vectors of kLanes go round four rows of partial sums, which are emptied into higher levels every 2^power rounds.
template <int kLanes>
float CascadeSum(ConstVector x) {
  constexpr int kRows = 4, kLevels = 4;
  const int64_t vectors = x.size / kLanes, rounds = vectors / kRows;
  const int log2_rounds = rounds <= 1 ? 0 : std::bit_width(static_cast<uint64_t>(rounds - 1));
  const int power = std::max(4, log2_rounds / kLevels);
  const int64_t step = int64_t{1} << power;
  float sums[kLevels][kRows * kLanes] = {};
  const auto add_level = [&sums](int to, int from) {
    for (int i = 0; i < kRows * kLanes; ++i) sums[to][i] += sums[from][i];
  };
  int64_t round = 0;
  const auto add_round = [&] {
    const float* values = x.data + round * kRows * kLanes;
    for (int i = 0; i < kRows * kLanes; ++i) sums[0][i] += values[i];
    ++round;
  };
  while (round + step <= rounds) {
    for (int64_t j = 0; j < step; ++j) add_round();
    for (int level = 1; level < kLevels; ++level) {
      add_level(level, level - 1);
      std::fill_n(sums[level - 1], kRows * kLanes, 0.0f);
      if ((round & ((step - 1) << (level * power))) != 0) break;
    }
  }
  while (round < rounds) add_round();
  for (int level = 1; level < kLevels; ++level) add_level(0, level);
  for (int64_t v = rounds * kRows; v < vectors; ++v) {
    for (int lane = 0; lane < kLanes; ++lane) sums[0][lane] += x[v * kLanes + lane];
  }
  for (int row = 1; row < kRows; ++row) {
    for (int lane = 0; lane < kLanes; ++lane) sums[0][lane] += sums[0][row * kLanes + lane];
  }
  if (kLanes == 1) return sums[0][0];
  float sum = 0;
  for (int64_t i = vectors * kLanes; i < x.size; ++i) sum += x[i];
  for (int lane = 0; lane < kLanes; ++lane) sum += sums[0][lane];
  return sum;
}

}  // namespace

bool IsBlockSize4Bit(int64_t block_size) {
  return block_size >= 32 && block_size <= 4096 && (block_size & (block_size - 1)) == 0;
}

namespace {

int64_t Quantize(EncodeBlock encode_block, Format format, ConstVector values, int32_t block_size, uint8_t* codes,
                 Vector absmax) {
  CHECK(format == Format::kNF4 || format == Format::kFP4);
  CHECK(IsBlockSize4Bit(block_size)) << block_size;
  const int64_t full_blocks = values.size / block_size;
  CHECK_EQ(absmax.size, (values.size + block_size - 1) / block_size);
  const Encoder encoder = MakeEncoder(format);
  std::atomic<int64_t> first_bad{absmax.size};
  const auto report = [&first_bad](int64_t block) {
    int64_t seen = first_bad.load();
    while (block < seen && !first_bad.compare_exchange_weak(seen, block)) {
    }
  };
  ParallelRanges(full_blocks, std::max<int64_t>(1, 65536 / block_size), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * block_size;
      const uint32_t bits = encode_block(encoder, values.data + first, block_size, codes + first / 2);
      absmax[b] = std::bit_cast<float>(bits);
      if (bits >= kInfinityBits) report(b);
    }
  });
  if (const int64_t first = full_blocks * block_size; first < values.size) {
    const uint32_t bits =
        EncodeShortBlock(encoder, values.data + first, values.size - first, codes + first / 2, &absmax[full_blocks]);
    if (bits >= kInfinityBits) report(full_blocks);
  }
  return first_bad < absmax.size ? first_bad.load() : -1;
}

}  // namespace

int64_t Quantize4Bit(Format format, ConstVector values, int32_t block_size, uint8_t* codes, Vector absmax) {
  return Quantize(BestEncodeBlock(), format, values, block_size, codes, absmax);
}

int64_t Quantize4BitPortable(Format format, ConstVector values, int32_t block_size, uint8_t* codes, Vector absmax) {
  return Quantize(EncodeBlockPortable, format, values, block_size, codes, absmax);
}

float MeanAbsmax(ConstVector absmax) {
  if (absmax.size == 0) return 0;
  const float sum = absmax.size < 8 ? CascadeSum<1>(absmax) : CascadeSum<8>(absmax);
  if (std::isfinite(sum)) return sum / static_cast<float>(absmax.size);
  double wide = 0;
  for (int64_t i = 0; i < absmax.size; ++i) wide += absmax[i];
  return static_cast<float>(wide / static_cast<double>(absmax.size));
}

void QuantizeAbsmax(ConstVector absmax, float offset, uint8_t* codes, Vector nested_absmax) {
  CHECK_EQ(nested_absmax.size, (absmax.size + kNestedBlockSize - 1) / kNestedBlockSize);
  const DynamicEncoder& encoder = SignedDynamicEncoder();
  ParallelRanges(nested_absmax.size, 16, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kNestedBlockSize;
      const int64_t last = std::min(absmax.size, first + kNestedBlockSize);
      float largest = 0;
      for (int64_t i = first; i < last; ++i) largest = std::max(largest, std::fabs(absmax[i] - offset));
      nested_absmax[block] = largest;
      if (largest == 0) {
        std::memset(codes + first, 0, last - first);
        continue;
      }
      const float scale = 1.0f / largest;
      for (int64_t i = first; i < last; ++i) codes[i] = encoder.Code(SnapToGrid((absmax[i] - offset) * scale));
    }
  });
}

WeightView QuantizedWeight::View() const {
  WeightView view;
  view.format = format;
  view.rows = rows;
  view.cols = cols;
  view.data = codes.data();
  view.block_size = block_size;
  if (double_quant()) {
    view.absmax_codes = absmax_codes.data();
    view.absmax_map = absmax_map.data();
    view.nested_absmax = nested_absmax.data();
    view.nested_offset = nested_offset;
  } else {
    view.absmax = absmax.data();
  }
  if (!offsets.empty()) view.offsets = offsets.data();
  if (!column_blocks.empty()) view.column_blocks = column_blocks.data();
  return view;
}

int64_t QuantizedWeight::Bytes() const {
  return static_cast<int64_t>(
      codes.size() + absmax_codes.size() +
      (absmax.size() + absmax_map.size() + nested_absmax.size() + offsets.size() + column_blocks.size()) *
          sizeof(float));
}

WeightQuantizer::WeightQuantizer(Format format, int64_t rows, int64_t cols, int32_t block_size, bool double_quant)
    : double_quant_(double_quant) {
  CHECK(IsBlockSize4Bit(block_size)) << block_size;
  const int64_t count = rows * cols;
  result_.format = format;
  result_.rows = rows;
  result_.cols = cols;
  result_.block_size = block_size;
  result_.codes.resize((count + 1) / 2);
  result_.absmax.resize((count + block_size - 1) / block_size);
  pending_.reserve(block_size);
}

void WeightQuantizer::Push(ConstVector values) {
  const int64_t block_size = result_.block_size;
  const int64_t count = result_.rows * result_.cols;
  CHECK_LE(encoded_ + static_cast<int64_t>(pending_.size()) + values.size, count);
  const float* next = values.data;
  const float* end = values.data + values.size;
  if (!pending_.empty()) {
    const int64_t missing = block_size - static_cast<int64_t>(pending_.size());
    const float* taken = next + std::min<int64_t>(values.size, missing);
    pending_.insert(pending_.end(), next, taken);
    next = taken;
  }
  if (pending_.empty() || static_cast<int64_t>(pending_.size()) == block_size) {
    EncodePending();
    const int64_t whole = (end - next) / block_size * block_size;
    Encode({next, whole});
    pending_.assign(next + whole, end);
  }
  if (encoded_ + static_cast<int64_t>(pending_.size()) == count) EncodePending();
}

void WeightQuantizer::EncodePending() {
  Encode({pending_.data(), static_cast<int64_t>(pending_.size())});
  pending_.clear();
}

void WeightQuantizer::Encode(ConstVector values) {
  if (values.size == 0) return;
  const int64_t block = encoded_ / result_.block_size;
  const int64_t blocks = (values.size + result_.block_size - 1) / result_.block_size;
  const int64_t bad = Quantize4Bit(result_.format, values, result_.block_size, result_.codes.data() + encoded_ / 2,
                                   {result_.absmax.data() + block, blocks});
  if (bad >= 0) finite_ = false;
  encoded_ += values.size;
}

QuantizedWeight WeightQuantizer::Finish() {
  CHECK(finite_);
  CHECK_EQ(encoded_, result_.rows * result_.cols);
  if (double_quant_) {
    const ConstVector absmax(result_.absmax.data(), static_cast<int64_t>(result_.absmax.size()));
    result_.nested_offset = MeanAbsmax(absmax);
    result_.absmax_codes.resize(absmax.size);
    result_.nested_absmax.resize((absmax.size + kNestedBlockSize - 1) / kNestedBlockSize);
    result_.absmax_map.assign(SignedDynamicMap(), SignedDynamicMap() + 256);
    QuantizeAbsmax(absmax, result_.nested_offset, result_.absmax_codes.data(),
                   {result_.nested_absmax.data(), static_cast<int64_t>(result_.nested_absmax.size())});
    result_.absmax = {};
  }
  return std::exchange(result_, {});
}

}  // namespace thimble
