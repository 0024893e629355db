// Number formats of weights and the one view through which kernels read them.
// A format is a table row: name, values per block, bytes per block, decode. Kernels decode a tile, then run the float
// core.
#pragma once

#include <cstdint>
#include <string_view>

namespace thimble {

enum class Format : uint8_t {
  kF32,
  kBF16,
  kF16,
  kNF4,
  kFP4,
  // Codes with one scale a group, which lies apart from them (ops/quantize_scaled.h).
  kInt4,
  kE2M1,
  kInt8,
  kE4M3,
  kE5M2,
  // BitNet b1.58: -1, 0 and 1 times one scale (absmax[0]); rows padded to 64 values, 16 bytes each 64: bits 2 i and 2 i
  // + 1 of byte j are value 16 i + j, plus 1 (ops/bit_linear.h).
  kTernary,
  // Whole blocks of a row, each with its own scales, as ggml stores them (ops/decode_blocks.h).
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ4K,
  kQ5K,
  kQ6K,
  kTQ1_0,
  kTQ2_0,
  kMXFP4,
  kNVFP4,
};

// Where the values of a weight lie that is not in memory as a whole: a range of bytes in row order. May be called from
// several threads. A failure stays with the owner of the bytes, who reports it; what was asked for is zero then.
class WeightReader {
 public:
  virtual ~WeightReader() = default;
  virtual void Read(int64_t offset, int64_t bytes, void* to) const = 0;
  // The same, begun only: `to` belongs to the reader until Wait for the ticket.
  virtual int64_t Begin(int64_t offset, int64_t bytes, void* to) = 0;
  virtual void Wait(int64_t ticket) = 0;
};

// A weight [rows, cols], row-major ([out, in]), in any format. Owns nothing.
struct WeightView {
  Format format = Format::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  // Values (f32, bf16, f16), blocks in order (block formats; cols is a multiple of their values), or codes: nf4, fp4,
  // int4 and e2m1 hold element 2k in the high nibble of byte k of the flattened weight (bitsandbytes), int8 and the
  // 8-bit floats a byte each. A code of int4 is the value plus 8.
  const void* data = nullptr;
  // All but codes with scales, with data null: DecodeRow and the ops that say so read rows through it.
  WeightReader* reader = nullptr;

  // The rest is for codes with scales (of ternary weights absmax[0] only). Blocks of block_size consecutive elements of
  // the flattened weight, of nf4 and fp4 across row ends. absmax is the factor of a block's codes.
  int32_t block_size = 64;
  // Plain: absmax per block. Null when nested.
  const float* absmax = nullptr;
  // Nested (double quantisation): absmax = absmax_map[absmax_codes[b]] * nested_absmax[b / 256] + nested_offset.
  const uint8_t* absmax_codes = nullptr;
  const float* absmax_map = nullptr;  // 256 entries
  const float* nested_absmax = nullptr;
  float nested_offset = 0;
  // Added behind the product, per block; null: nothing. Not of nf4 and fp4.
  const float* offsets = nullptr;
  // GPTQ's activation order: [cols], the block within its row that a column belongs to; null: in order. Of int4, int8.
  const int32_t* column_blocks = nullptr;

  WeightView() = default;
  // A plain f32 matrix.
  WeightView(const float* values, int64_t rows, int64_t cols) : rows(rows), cols(cols), data(values) {}
};

struct FormatInfo {
  std::string_view name;  // as in recipes and logs: "f32", "bf16", "f16", "nf4", "q4_k"
  int values_per_block;   // 1 for plain types
  int bytes_per_block;    // of codes with scales the codes only
};
const FormatInfo& InfoOf(Format format);
inline constexpr int kFormats = static_cast<int>(Format::kNVFP4) + 1;
// No larger than this in any format.
inline constexpr int kMostValuesPerBlock = 256;

// f32, bf16 and f16.
inline bool IsPlain(Format format) { return format <= Format::kF16; }
// Blocks that hold their own scales.
inline bool IsBlockFormat(Format format) { return format >= Format::kQ4_0; }
// nf4 and fp4, as bitsandbytes stores them.
inline bool Is4Bit(Format format) { return format == Format::kNF4 || format == Format::kFP4; }
// Codes whose scales lie apart from them: nf4, fp4 and the five behind them.
inline bool HasScales(Format format) { return format >= Format::kNF4 && format <= Format::kE5M2; }
// Those of two codes a byte.
inline bool HasNibbles(Format format) { return format >= Format::kNF4 && format <= Format::kE2M1; }
// Bytes of `values` values, whole blocks, of a plain or a block format.
int64_t StoredBytes(Format format, int64_t values);

// The 16 values of the codes of nf4, fp4, int4 and e2m1, or the 256 of int8 and the 8-bit floats (whose NaN and
// infinities are that here too); null for the other formats.
const float* Codebook(Format format);

// absmax of a block of codes with scales: as stored, or fp32(fp32(map[q] * nested_absmax) + offset).
float BlockAbsmax(const WeightView& w, int64_t block);

// out[0..count) = w[row, col .. col+count) as f32, exactly as the reference decoder of the format rounds it; for nf4
// and the like fp32(codebook[code] * absmax), a nested absmax being fp32(fp32(map[q] * nested_absmax) + offset), plus
// the block's offset where there are offsets.
// count may run past the row's end into the next rows. Any start; fastest where row * cols + col is even.
void DecodeRow(const WeightView& w, int64_t row, int64_t col, int64_t count, float* out);
// The same bits from plain C++, which DecodeRow falls back to (NaN in f16 may keep another payload).
void DecodeRowPortable(const WeightView& w, int64_t row, int64_t col, int64_t count, float* out);

// Conversions, round to nearest even; NaN stays NaN.
float BF16ToFloat(uint16_t bits);
uint16_t FloatToBF16(float value);
float F16ToFloat(uint16_t bits);
uint16_t FloatToF16(float value);
// The 8-bit floats of arXiv:2209.05433. E4M3 has no infinity: beyond 448, infinities included, the largest value, as
// PyTorch converts; E5M2 rounds to infinity from 61440 on.
float E4M3ToFloat(uint8_t bits);
uint8_t FloatToE4M3(float value);
float E5M2ToFloat(uint8_t bits);
uint8_t FloatToE5M2(float value);
// E2M1: magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6 and a sign in bit 3; ties to the even code, beyond 6 the largest. No NaN.
uint8_t FloatToE2M1(float value);

}  // namespace thimble
