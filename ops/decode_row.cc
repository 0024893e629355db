// DecodeRow: weights of any format to f32, a few hundred values a call. AVX2 where the active CPU level has it, else
// plain C++.
#include <algorithm>
#include <cstring>

#include "ops/cpu_level.h"
#include "ops/decode_blocks.h"
#include "ops/format.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace thimble {

float BlockAbsmax(const WeightView& w, int64_t block) {
  if (w.absmax != nullptr) return w.absmax[block];
  const float product = w.absmax_map[w.absmax_codes[block]] * w.nested_absmax[block / 256];
  return product + w.nested_offset;
}

namespace {

// One decoder a level. The 4-bit ones decode `count` elements of one block: element i is nibble `begin + i` of `codes`
// (even nibbles are high), and every value is fp32(codebook[code] * absmax); `bytes` the same of codes of a byte.
struct Decoders {
  void (*bf16)(const uint16_t* in, int64_t count, float* out);
  void (*f16)(const uint16_t* in, int64_t count, float* out);
  void (*block)(const uint8_t* codes, int64_t begin, int64_t count, const float* codebook, float absmax, float* out);
  void (*ternary)(const uint8_t* chunk, const float (&values)[4], float* out);  // 64 values
  void (*bytes)(const uint8_t* codes, int64_t count, const float* codebook, float absmax, float* out);
  void (*blocks)(Format format, const void* in, int64_t blocks, float* out);  // of formats with their own scales
};

void DecodeBF16Portable(const uint16_t* in, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = BF16ToFloat(in[i]);
}

void DecodeF16Portable(const uint16_t* in, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = F16ToFloat(in[i]);
}

void DecodeBlockPortable(const uint8_t* codes, int64_t begin, int64_t count, const float* codebook, float absmax,
                         float* out) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t element = begin + i;
    const uint8_t pair = codes[element >> 1];
    out[i] = codebook[element & 1 ? pair & 15 : pair >> 4] * absmax;
  }
}

void DecodeTernaryPortable(const uint8_t* chunk, const float (&values)[4], float* out) {
  for (int part = 0; part < 4; ++part) {
    for (int j = 0; j < 16; ++j) out[part * 16 + j] = values[chunk[j] >> (2 * part) & 3];
  }
}

void DecodeBytesPortable(const uint8_t* codes, int64_t count, const float* codebook, float absmax, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = codebook[codes[i]] * absmax;
}

constexpr Decoders kPortable = {DecodeBF16Portable,    DecodeF16Portable,   DecodeBlockPortable,
                                DecodeTernaryPortable, DecodeBytesPortable, DecodeBlocksPortable};

#if defined(__x86_64__)
__attribute__((target("avx2"))) void DecodeBF16Avx2(const uint16_t* in, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i));
    const __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), wide);
  }
  DecodeBF16Portable(in + i, count - i, out + i);
}

__attribute__((target("avx2,f16c"))) void DecodeF16Avx2(const uint16_t* in, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
  }
  DecodeF16Portable(in + i, count - i, out + i);
}

__attribute__((target("avx2"))) void DecodeTernaryAvx2(const uint8_t* chunk, const float (&values)[4], float* out) {
  const __m256 table = _mm256_castps128_ps256(_mm_loadu_ps(values));
  for (int j = 0; j < 16; j += 8) {
    __m256i codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(chunk + j)));
    for (int part = 0; part < 4; ++part, codes = _mm256_srli_epi32(codes, 2)) {
      const __m256i index = _mm256_and_si256(codes, _mm256_set1_epi32(3));
      _mm256_storeu_ps(out + part * 16 + j, _mm256_permutevar8x32_ps(table, index));
    }
  }
}

__attribute__((target("avx2"))) void DecodeBlockAvx2(const uint8_t* codes, int64_t begin, int64_t count,
                                                     const float* codebook, float absmax, float* out) {
  int64_t i = std::min<int64_t>(begin & 1, count);
  DecodeBlockPortable(codes, begin, i, codebook, absmax, out);
  // Scaling the 16 values once and permuting them gives the same products as scaling each element.
  const __m256 low = _mm256_mul_ps(_mm256_loadu_ps(codebook), _mm256_set1_ps(absmax));
  const __m256 high = _mm256_mul_ps(_mm256_loadu_ps(codebook + 8), _mm256_set1_ps(absmax));
  // A little-endian word of four bytes holds elements 0..7 at these bit positions.
  const __m256i shifts = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24);
  const uint8_t* bytes = codes + ((begin + i) >> 1);
  for (; i + 8 <= count; i += 8, bytes += 4) {
    int32_t word;
    std::memcpy(&word, bytes, sizeof(word));
    // The permutes read bits 0..2 of each lane, the blend reads bit 3 moved to the sign.
    const __m256i index = _mm256_srlv_epi32(_mm256_set1_epi32(word), shifts);
    const __m256 value = _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, index), _mm256_permutevar8x32_ps(high, index),
                                          _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
    _mm256_storeu_ps(out + i, value);
  }
  DecodeBlockPortable(codes, begin + i, count - i, codebook, absmax, out + i);
}

__attribute__((target("avx2"))) void DecodeBytesAvx2(const uint8_t* codes, int64_t count, const float* codebook,
                                                     float absmax, float* out) {
  const __m256 scale = _mm256_set1_ps(absmax);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256i index = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + i)));
    _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_i32gather_ps(codebook, index, 4), scale));
  }
  DecodeBytesPortable(codes + i, count - i, codebook, absmax, out + i);
}

constexpr Decoders kAvx2 = {DecodeBF16Avx2,    DecodeF16Avx2,   DecodeBlockAvx2,
                            DecodeTernaryAvx2, DecodeBytesAvx2, DecodeBlocks};
#endif

const Decoders& BestDecoders() {
#if defined(__x86_64__)
  if (ActiveCpuLevel() >= CpuLevel::kAvx2) return kAvx2;  // Highway's level has F16C
#endif
  return kPortable;
}

// Calls use(begin, length, block, out) for the part of each block in turn.
template <typename Use>
void ForBlocks(const WeightView& w, int64_t begin, int64_t count, float* out, const Use& use) {
  int64_t block = begin / w.block_size;
  int64_t block_end = (block + 1) * w.block_size;
  for (const int64_t end = begin + count; begin < end; ++block, block_end += w.block_size) {
    const int64_t length = std::min(end, block_end) - begin;
    use(begin, length, block, out);
    begin += length;
    out += length;
  }
}

void Decode4Bit(const Decoders& decoders, const WeightView& w, int64_t begin, int64_t count, float* out) {
  const float* codebook = Codebook(w.format);
  const uint8_t* codes = static_cast<const uint8_t*>(w.data);
  ForBlocks(w, begin, count, out, [&](int64_t at, int64_t length, int64_t block, float* to) {
    decoders.block(codes, at, length, codebook, BlockAbsmax(w, block), to);
  });
}

// Columns whose blocks stand in no order.
void DecodeScattered(const WeightView& w, int64_t begin, int64_t count, float* out) {
  const float* codebook = Codebook(w.format);
  const uint8_t* codes = static_cast<const uint8_t*>(w.data);
  const int64_t blocks = w.cols / w.block_size;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = begin + i;
    const int64_t block = at / w.cols * blocks + w.column_blocks[at % w.cols];
    const uint8_t code = HasNibbles(w.format) ? codes[at >> 1] >> (at & 1 ? 0 : 4) & 15 : codes[at];
    out[i] = codebook[code] * BlockAbsmax(w, block);
    if (w.offsets != nullptr) out[i] += w.offsets[block];
  }
}

void DecodeScaled(const Decoders& decoders, const WeightView& w, int64_t begin, int64_t count, float* out) {
  if (w.column_blocks != nullptr) return DecodeScattered(w, begin, count, out);
  const float* codebook = Codebook(w.format);
  const uint8_t* codes = static_cast<const uint8_t*>(w.data);
  ForBlocks(w, begin, count, out, [&](int64_t at, int64_t length, int64_t block, float* to) {
    const float scale = BlockAbsmax(w, block);
    if (HasNibbles(w.format)) {
      decoders.block(codes, at, length, codebook, scale, to);
    } else {
      decoders.bytes(codes + at, length, codebook, scale, to);
    }
    if (w.offsets == nullptr) return;
    for (int64_t i = 0; i < length; ++i) to[i] += w.offsets[block];
  });
}

// Whole blocks go straight to `out`, parts of a block through a buffer.
void DecodeFromBlocks(const Decoders& decoders, const WeightView& w, int64_t begin, int64_t count, float* out) {
  const FormatInfo& info = InfoOf(w.format);
  const uint8_t* blocks = static_cast<const uint8_t*>(w.data);
  const int64_t size = info.values_per_block;
  for (const int64_t end = begin + count; begin < end;) {
    const uint8_t* at = blocks + begin / size * info.bytes_per_block;
    const int64_t skipped = begin % size;
    int64_t length = std::min(end - begin, size - skipped);
    if (length == size) {
      length = (end - begin) / size * size;
      decoders.blocks(w.format, at, length / size, out);
    } else {
      float values[kMostValuesPerBlock];
      decoders.blocks(w.format, at, 1, values);
      std::memcpy(out, values + skipped, static_cast<size_t>(length) * sizeof(float));
    }
    begin += length;
    out += length;
  }
}

// Within a row: what follows is padding.
void DecodeTernary(const Decoders& decoders, const WeightView& w, int64_t row, int64_t col, int64_t count, float* out) {
  constexpr int64_t kChunk = 64;
  const float values[4] = {-w.absmax[0], 0.0f, w.absmax[0], 0.0f};
  const uint8_t* codes = static_cast<const uint8_t*>(w.data) + row * ((w.cols + kChunk - 1) / kChunk * 16);
  for (const int64_t end = col + count; col < end;) {
    const uint8_t* chunk = codes + col / kChunk * 16;
    const int64_t skipped = col % kChunk;
    const int64_t length = std::min(end - col, kChunk - skipped);
    if (length == kChunk) {
      decoders.ternary(chunk, values, out);
    } else {
      float all[kChunk];
      decoders.ternary(chunk, values, all);
      std::memcpy(out, all + skipped, static_cast<size_t>(length) * sizeof(float));
    }
    col += length;
    out += length;
  }
}

void Decode(const Decoders& decoders, const WeightView& w, int64_t row, int64_t col, int64_t count, float* out) {
  const int64_t begin = row * w.cols + col;
  switch (w.format) {
    case Format::kF32:
      if (count > 0) std::memcpy(out, static_cast<const float*>(w.data) + begin, count * sizeof(float));
      return;
    case Format::kBF16:
      return decoders.bf16(static_cast<const uint16_t*>(w.data) + begin, count, out);
    case Format::kF16:
      return decoders.f16(static_cast<const uint16_t*>(w.data) + begin, count, out);
    case Format::kNF4:
    case Format::kFP4:
      return Decode4Bit(decoders, w, begin, count, out);
    case Format::kTernary:
      return DecodeTernary(decoders, w, row, col, count, out);
    case Format::kInt4:
    case Format::kE2M1:
    case Format::kInt8:
    case Format::kE4M3:
    case Format::kE5M2:
      return DecodeScaled(decoders, w, begin, count, out);
    default:
      return DecodeFromBlocks(decoders, w, begin, count, out);
  }
}

}  // namespace

namespace {

// A piece at a time, each on the stack and with all of its first and last block.
void DecodeThroughReader(const WeightView& w, int64_t row, int64_t col, int64_t count, float* out) {
  constexpr int64_t kPiece = 1024;
  alignas(64) char bytes[kPiece * sizeof(float)];
  const int64_t block = InfoOf(w.format).values_per_block;
  WeightView piece = w;
  piece.reader = nullptr;
  piece.data = bytes;
  int64_t begin = row * w.cols + col;
  for (const int64_t end = begin + count; begin < end;) {
    const int64_t first = begin / block * block;
    const int64_t next = std::min(end, first + kPiece);
    const int64_t last = (next + block - 1) / block * block;
    w.reader->Read(StoredBytes(w.format, first), StoredBytes(w.format, last - first), bytes);
    Decode(BestDecoders(), piece, 0, begin - first, next - begin, out);
    out += next - begin;
    begin = next;
  }
}

}  // namespace

void DecodeRow(const WeightView& w, int64_t row, int64_t col, int64_t count, float* out) {
  if (w.reader != nullptr) return DecodeThroughReader(w, row, col, count, out);
  Decode(BestDecoders(), w, row, col, count, out);
}

void DecodeRowPortable(const WeightView& w, int64_t row, int64_t col, int64_t count, float* out) {
  Decode(kPortable, w, row, col, count, out);
}

}  // namespace thimble
