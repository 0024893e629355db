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
  // Values (f32, bf16, f16), blocks in order (block formats; cols is a multiple of their values), or packed codes: nf4
  // and fp4 hold element 2k in the high nibble of byte k of the flattened weight (bitsandbytes).
  const void* data = nullptr;
  // All but nf4 and fp4, with data null: DecodeRow and the ops that say so read rows through it.
  WeightReader* reader = nullptr;

  // nf4 and fp4 (of ternary weights absmax[0] only). Blocks of block_size consecutive elements of the flattened weight,
  // across row ends.
  int32_t block_size = 64;
  // Plain: absmax per block. Null when nested.
  const float* absmax = nullptr;
  // Nested (double quantisation): absmax = absmax_map[absmax_codes[b]] * nested_absmax[b / 256] + nested_offset.
  const uint8_t* absmax_codes = nullptr;
  const float* absmax_map = nullptr;  // 256 entries
  const float* nested_absmax = nullptr;
  float nested_offset = 0;

  WeightView() = default;
  // A plain f32 matrix.
  WeightView(const float* values, int64_t rows, int64_t cols) : rows(rows), cols(cols), data(values) {}
};

struct FormatInfo {
  std::string_view name;  // as in recipes and logs: "f32", "bf16", "f16", "nf4", "q4_k"
  int values_per_block;   // 1 for plain types
  int bytes_per_block;    // of nf4 and fp4 codes only, without block statistics
};
const FormatInfo& InfoOf(Format format);
inline constexpr int kFormats = static_cast<int>(Format::kNVFP4) + 1;
// No larger than this in any format.
inline constexpr int kMostValuesPerBlock = 256;

// f32, bf16 and f16.
inline bool IsPlain(Format format) { return format <= Format::kF16; }
// Blocks that hold their own scales.
inline bool IsBlockFormat(Format format) { return format >= Format::kQ4_0; }
// nf4 and fp4, whose block statistics lie apart from the codes.
inline bool Is4Bit(Format format) { return format == Format::kNF4 || format == Format::kFP4; }
// Bytes of `values` values, whole blocks, of a plain or a block format.
int64_t StoredBytes(Format format, int64_t values);

// The 16 values of nf4's or fp4's codes; null for the other formats.
const float* Codebook(Format format);

// absmax of a block of a 4-bit weight: as stored, or fp32(fp32(map[q] * nested_absmax) + offset).
float BlockAbsmax(const WeightView& w, int64_t block);

// out[0..count) = w[row, col .. col+count) as f32, exactly as the reference decoder of the format rounds it; for nf4
// and fp4 fp32(codebook[code] * absmax), a nested absmax being fp32(fp32(map[q] * nested_absmax) + offset).
// count may run past the row's end into the next rows. Any start; fastest where row * cols + col is even.
void DecodeRow(const WeightView& w, int64_t row, int64_t col, int64_t count, float* out);
// The same bits from plain C++, which DecodeRow falls back to (NaN in f16 may keep another payload).
void DecodeRowPortable(const WeightView& w, int64_t row, int64_t col, int64_t count, float* out);

// Conversions, round to nearest even; NaN stays NaN.
float BF16ToFloat(uint16_t bits);
uint16_t FloatToBF16(float value);
float F16ToFloat(uint16_t bits);
uint16_t FloatToF16(float value);

}  // namespace thimble
