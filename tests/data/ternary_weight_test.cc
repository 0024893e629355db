#include "data/ternary_weight.h"

#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ops/ternary_storage.h"

namespace thimble {
namespace {

using testing::HasSubstr;

constexpr char kName[] = "model.layers.0.self_attn.q_proj.weight";

struct Stored {
  std::string method = "bitnet";
  std::string linear_class = "autobitlinear";
  std::vector<uint8_t> codes = {2 | 1 << 2 | 0 << 4 | 2 << 6};  // the column 1, 0, -1, 1
  float scale = 0.75f;
  bool has_scale = true;
};

absl::StatusOr<std::vector<float>> Read(const Stored& stored, int64_t rows = 4) {
  const std::string path = testing::TempDir() + "/ternary_weight_test." + std::to_string(::getpid());
  std::filesystem::remove_all(path);
  nlohmann::json config = {{"model_type", "bitnet"}};
  if (!stored.method.empty()) {
    config["quantization_config"] = {{"quant_method", stored.method}, {"linear_class", stored.linear_class}};
  }
  std::vector<TensorSpec> specs = {{kName, TensorDType::kU8, {static_cast<int64_t>(stored.codes.size()), 1}}};
  if (stored.has_scale) specs.push_back({TernaryScaleName(kName), TensorDType::kF32, {1}});
  auto writer = ModelFolderWriter::Create(path, config, specs);
  EXPECT_TRUE(writer.ok()) << writer.status();
  EXPECT_TRUE((*writer)->Append(kName, stored.codes.data(), static_cast<int64_t>(stored.codes.size())).ok());
  if (stored.has_scale) {
    EXPECT_TRUE((*writer)->AppendFloats(TernaryScaleName(kName), ConstVector(&stored.scale, 1)).ok());
  }
  EXPECT_TRUE((*writer)->Finish().ok());
  const auto opened = ModelFolder::Open(path);
  EXPECT_TRUE(opened.ok()) << opened.status();
  EXPECT_TRUE(HoldsTernary(**opened, kName));
  auto read = ReadTernary(**opened, kName, rows, 1);
  std::filesystem::remove_all(path);
  if (!read.ok()) return read.status();
  std::vector<float> masters(rows);
  const float factor = MasterFactor(read->View());
  for (int64_t r = 0; r < rows; ++r) DecodeRow(read->View(), r, 0, 1, &masters[r]);
  for (float& value : masters) value *= factor;
  return masters;
}

TEST(TernaryWeightTest, MastersHaveTheScaleAsTheirMeanMagnitude) {
  // Three of four values are not 0.
  EXPECT_EQ(*Read({}), std::vector<float>({1, 0, -1, 1}));
  Stored inverted;
  inverted.linear_class = "bitlinear";
  inverted.scale = 1 / 0.75f;
  EXPECT_EQ(*Read(inverted), std::vector<float>({1, 0, -1, 1}));
}

TEST(TernaryWeightTest, ZerosStayZeros) {
  Stored zeros;
  zeros.codes = {0x55};
  EXPECT_EQ(*Read(zeros), std::vector<float>(4, 0.0f));
}

TEST(TernaryWeightTest, DamageIsNamed) {
  const auto message = [](const Stored& stored, int64_t rows = 4) {
    const auto read = Read(stored, rows);
    EXPECT_FALSE(read.ok());
    return std::string(read.status().message());
  };
  Stored no_scale;
  no_scale.has_scale = false;
  EXPECT_THAT(message(no_scale), HasSubstr("q_proj.weight_scale"));
  Stored code;
  code.codes = {3};
  EXPECT_THAT(message(code), HasSubstr("byte 0 holds the code 3"));
  for (const float scale : {0.0f, -1.0f, std::numeric_limits<float>::quiet_NaN()}) {
    Stored bad;
    bad.scale = scale;
    EXPECT_THAT(message(bad), HasSubstr("expected a positive finite scale"));
  }
  Stored plain;
  plain.method = "";
  EXPECT_THAT(message(plain), HasSubstr("quantization_config of quant_method bitnet"));
  EXPECT_THAT(message({}, 8), HasSubstr("expected shape [2, 1]"));
  EXPECT_THAT(message({}, 5), HasSubstr("a quarter of 5"));
}

}  // namespace
}  // namespace thimble
