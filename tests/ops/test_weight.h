// Random weights in every number format, for the tests of ops that read them.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/format.h"
#include "ops/quantize_4bit.h"
#include "tests/ops/gradient_check.h"

namespace thimble {

// A weight in any format and its storage.
class TestWeight {
 public:
  TestWeight(Format format, int64_t rows, int64_t cols, uint32_t seed, int block_size = 64, bool nested = false) {
    const std::vector<float> values = TestMatrix::Random(rows, cols, seed).Values();
    view_.format = format;
    view_.rows = rows;
    view_.cols = cols;
    if (format == Format::kNF4 || format == Format::kFP4) {
      WeightQuantizer quantizer(format, rows, cols, block_size, nested);
      quantizer.Push({values.data(), rows * cols});
      quantized_ = quantizer.Finish();
      view_ = quantized_.View();
    } else if (format == Format::kF32) {
      floats_ = values;
      view_.data = floats_.data();
    } else {
      for (const float value : values) {
        halves_.push_back(format == Format::kBF16 ? FloatToBF16(value) : FloatToF16(value));
      }
      view_.data = halves_.data();
    }
  }
  TestWeight(const TestWeight&) = delete;
  const WeightView& view() const { return view_; }
  std::vector<float> Decoded() const {
    std::vector<float> values(view_.rows * view_.cols + 1);  // never empty, so that a row always has an address
    for (int64_t r = 0; r < view_.rows; ++r) DecodeRowPortable(view_, r, 0, view_.cols, &values[r * view_.cols]);
    values.pop_back();
    return values;
  }

 private:
  WeightView view_;
  std::vector<float> floats_;
  std::vector<uint16_t> halves_;
  QuantizedWeight quantized_;
};

}  // namespace thimble
