// How a matrix product rounds its operands.
#pragma once

#include <cstdint>

namespace thimble {

// kF32: operands as they are. kBF16: both operands rounded to bf16, products accumulated in f32.
enum class Compute : uint8_t { kF32, kBF16 };

}  // namespace thimble
