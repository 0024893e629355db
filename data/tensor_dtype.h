// Element types of tensors in safetensors files.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "ops/format.h"

namespace thimble {

// In the order of the safetensors library, by which writers sort.
enum class TensorDType : uint8_t {
  kBool,
  kF4,
  kF6E2M3,
  kF6E3M2,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kF8E8M0,
  kF8E4M3FNUZ,
  kF8E5M2FNUZ,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kC64,
  kF64,
  kI64,
  kU64,
  // Of GGUF files alone: blocks with their own scales, in the order of Format.
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

// As in files: "F32", "BF16", "Q4_K", ...; case matters.
std::string_view NameOf(TensorDType dtype);
// Those of safetensors files.
std::optional<TensorDType> TensorDTypeFromName(std::string_view name);
// Of one element; not for blocks.
int64_t BitsOf(TensorDType dtype);
inline bool IsBlockType(TensorDType dtype) { return dtype >= TensorDType::kQ4_0; }

// The elements that are stored together, and their bytes: 1 and 2 for F16, 32 and 18 for Q4_0. Of types whose elements
// have whole bytes.
struct TypeSize {
  int64_t elements;
  int64_t bytes;
};
TypeSize SizeOf(TensorDType dtype);

// F32, BF16, F16 and the block types are formats of weights too.
std::optional<Format> FormatOf(TensorDType dtype);
// Of any format but codes with scales.
TensorDType TensorDTypeOf(Format format);

}  // namespace thimble
