#include "data/tensor_dtype.h"

#include "ops/check.h"

namespace thimble {
namespace {

struct DTypeRow {
  std::string_view name;
  int64_t bits;
};

// Indexed by TensorDType.
constexpr DTypeRow kDTypes[] = {
    {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6},     {"F6_E3M2", 6},     {"U8", 8},    {"I8", 8},    {"F8_E5M2", 8},
    {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},  {"U16", 16},  {"F16", 16},
    {"BF16", 16},   {"I32", 32},    {"U32", 32},        {"F32", 32},        {"C64", 64},  {"F64", 64},  {"I64", 64},
    {"U64", 64},    {"Q4_0", 0},    {"Q4_1", 0},        {"Q5_0", 0},        {"Q5_1", 0},  {"Q8_0", 0},  {"Q4_K", 0},
    {"Q5_K", 0},    {"Q6_K", 0},    {"TQ1_0", 0},       {"TQ2_0", 0},       {"MXFP4", 0}, {"NVFP4", 0},
};
constexpr int kDTypeCount = static_cast<int>(sizeof(kDTypes) / sizeof(kDTypes[0]));
static_assert(kDTypeCount == static_cast<int>(TensorDType::kNVFP4) + 1);

}  // namespace

std::string_view NameOf(TensorDType dtype) { return kDTypes[static_cast<int>(dtype)].name; }

std::optional<TensorDType> TensorDTypeFromName(std::string_view name) {
  for (int i = 0; i < static_cast<int>(TensorDType::kQ4_0); ++i) {
    if (kDTypes[i].name == name) return static_cast<TensorDType>(i);
  }
  return std::nullopt;
}

int64_t BitsOf(TensorDType dtype) {
  CHECK(!IsBlockType(dtype)) << NameOf(dtype);
  return kDTypes[static_cast<int>(dtype)].bits;
}

TypeSize SizeOf(TensorDType dtype) {
  if (!IsBlockType(dtype)) return {1, BitsOf(dtype) / 8};
  const FormatInfo& info = InfoOf(*FormatOf(dtype));
  return {info.values_per_block, info.bytes_per_block};
}

std::optional<Format> FormatOf(TensorDType dtype) {
  switch (dtype) {
    case TensorDType::kF32:
      return Format::kF32;
    case TensorDType::kBF16:
      return Format::kBF16;
    case TensorDType::kF16:
      return Format::kF16;
    default:
      if (!IsBlockType(dtype)) return std::nullopt;
      return static_cast<Format>(static_cast<int>(Format::kQ4_0) + static_cast<int>(dtype) -
                                 static_cast<int>(TensorDType::kQ4_0));
  }
}

TensorDType TensorDTypeOf(Format format) {
  CHECK(!HasScales(format));
  if (IsBlockFormat(format)) {
    return static_cast<TensorDType>(static_cast<int>(TensorDType::kQ4_0) + static_cast<int>(format) -
                                    static_cast<int>(Format::kQ4_0));
  }
  return format == Format::kF32 ? TensorDType::kF32 : format == Format::kBF16 ? TensorDType::kBF16 : TensorDType::kF16;
}

}  // namespace thimble
