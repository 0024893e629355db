// 4-bit block quantisation of weights, nf4 and fp4, with plain or doubly quantised block statistics: bit for bit what
// bitsandbytes computes on a CPU. Decoding is DecodeRow (ops/format.h).
// Source: Dettmers et al. 2023, arXiv:2305.14314; bitsandbytes 0.50, backends/default/ops.py and csrc/cpu_ops.cpp.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/format.h"
#include "ops/view.h"

namespace thimble {

// Blocks of absmax values that share one nested_absmax.
inline constexpr int64_t kNestedBlockSize = 256;

// 32, 64, 128, ... 4096.
bool IsBlockSize4Bit(int64_t block_size);

// Quantises values[0..n), the start of a flattened weight or of any block in it, in blocks of block_size.
// A block's absmax is max |w|; its codes are those of w * fp32(1 / max(absmax, 1e-38)). A last block shorter than
// block_size divides by absmax instead and stores at least 1e-38. Odd n: the last low nibble is the code of 0.
// codes [(n + 1) / 2] and absmax [ceil(n / block_size)] are written. Runs on all threads.
// Returns the index of the first block that holds a NaN or an infinity (its output is meaningless), or -1.
int64_t Quantize4Bit(Format format, ConstVector values, int32_t block_size, uint8_t* codes, Vector absmax);
// The same bits from plain C++, which Quantize4Bit falls back to.
int64_t Quantize4BitPortable(Format format, ConstVector values, int32_t block_size, uint8_t* codes, Vector absmax);

// The offset of doubly quantised statistics: the mean of absmax as torch.mean computes it in f32 on one x86 thread, in
// a fixed order of sums. (With more threads PyTorch splits 32,768 values and more, which may change the last bit.)
// Where the f32 sum overflows, the mean in double.
float MeanAbsmax(ConstVector absmax);

// Doubly quantised statistics: codes[b] of fp32(absmax[b] - offset) in blocks of 256 over SignedDynamicMap();
// nested_absmax [ceil(n / 256)].
void QuantizeAbsmax(ConstVector absmax, float offset, uint8_t* codes, Vector nested_absmax);

// A weight of codes with scales and its storage. As in WeightView, absmax is empty when the statistics are doubly
// quantised.
struct QuantizedWeight {
  Format format = Format::kNF4;
  int64_t rows = 0;
  int64_t cols = 0;
  int32_t block_size = 64;
  std::vector<uint8_t> codes;         // [ceil(rows * cols / 2)] nibbles, [rows * cols] bytes
  std::vector<float> absmax;          // [blocks]
  std::vector<uint8_t> absmax_codes;  // [blocks]
  std::vector<float> absmax_map;      // [256]
  std::vector<float> nested_absmax;   // [ceil(blocks / 256)]
  float nested_offset = 0;
  std::vector<float> offsets;          // [blocks] or empty
  std::vector<int32_t> column_blocks;  // [cols] or empty
  float tensor_scale = 0;              // of e2m1: by which absmax_map was multiplied

  bool double_quant() const { return !absmax_codes.empty(); }
  // Valid while this object is alive and not changed.
  WeightView View() const;
  // Of all the arrays above.
  int64_t Bytes() const;
};

// Quantises a weight pushed piece by piece in row-major order; the pieces may have any length. Memory: the result, the
// plain absmax, and one block.
class WeightQuantizer {
 public:
  // format is kNF4 or kFP4; block_size one that IsBlockSize4Bit accepts.
  WeightQuantizer(Format format, int64_t rows, int64_t cols, int32_t block_size, bool double_quant);
  void Push(ConstVector values);
  // False once a block with a NaN or an infinity is complete; Finish must not be called then.
  bool finite() const { return finite_; }
  // After exactly rows * cols values. Leaves this object empty.
  QuantizedWeight Finish();

 private:
  void Encode(ConstVector values);
  void EncodePending();

  QuantizedWeight result_;
  bool double_quant_;
  bool finite_ = true;
  int64_t encoded_ = 0;         // a multiple of block_size until the last block
  std::vector<float> pending_;  // values of an unfinished block
};

}  // namespace thimble
