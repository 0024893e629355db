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
};

// As in files: "F32", "BF16", ...; case matters.
std::string_view NameOf(TensorDType dtype);
std::optional<TensorDType> TensorDTypeFromName(std::string_view name);
int64_t BitsOf(TensorDType dtype);

// F32, BF16 and F16 are formats of weights too.
std::optional<Format> FormatOf(TensorDType dtype);
// kF32, kBF16 or kF16.
TensorDType TensorDTypeOf(Format format);

}  // namespace thimble
