// Weights as compressed-tensors, ModelOpt, GPTQ and AWQ store them, against what their own programs decode
// (tests/golden/stored_weight/make.py), the folders that Thimble writes, and damaged ones.
#include "data/stored_weight.h"

#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "data/gptq_weight.h"
#include "data/quantize_folder.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/data/test_folder.h"

namespace thimble {
namespace {

using testing::HasSubstr;

const char kGolden[] = THIMBLE_SOURCE_DIR "/tests/golden/";
const char kModule[] = "model.layers.0.self_attn.q_proj.";
const char kWeight[] = "model.layers.0.self_attn.q_proj.weight";

struct Tensor {
  TensorDType dtype = TensorDType::kF32;
  std::vector<int64_t> shape;
  std::string bytes;
};
using Case = std::map<std::string, Tensor>;  // by part, "weight_packed"

class StoredWeightTest : public TestFolder {
 protected:
  // The cases of a golden file; configurations stand in its metadata.
  std::map<std::string, Case> Cases(const std::string& file) {
    const auto golden = TensorFile::Open(kGolden + ("stored_weight/" + file)).value();
    configs_ = golden->metadata();
    std::map<std::string, Case> cases;
    for (const TensorInfo& info : golden->tensors()) {
      const size_t slash = info.name.find('/');
      Tensor& tensor = cases[info.name.substr(0, slash)][info.name.substr(slash + 1)];
      tensor = {info.dtype, info.shape, std::string(static_cast<size_t>(info.bytes), '\0')};
      EXPECT_TRUE(golden->ReadBytes(info, 0, info.bytes, tensor.bytes.data()).ok());
    }
    return cases;
  }

  nlohmann::json ConfigOf(const std::string& name) const {
    nlohmann::json config = nlohmann::json::object();
    const auto found = configs_.find(name);
    if (found != configs_.end()) config["quantization_config"] = nlohmann::json::parse(found->second);
    return config;
  }

  std::unique_ptr<ModelFolder> Written(const Case& parts, const nlohmann::json& config) {
    const std::string path = Path("folder" + std::to_string(folders_++));
    std::vector<TensorSpec> specs;
    for (const auto& [part, tensor] : parts) {
      if (part != "expected") specs.push_back({kModule + part, tensor.dtype, tensor.shape});
    }
    auto writer = ModelFolderWriter::Create(path, config, specs).value();
    for (const auto& [part, tensor] : parts) {
      if (part == "expected") continue;
      EXPECT_TRUE(writer->Append(kModule + part, tensor.bytes.data(), static_cast<int64_t>(tensor.bytes.size())).ok());
    }
    EXPECT_TRUE(writer->Finish().ok());
    return ModelFolder::Open(path).value();
  }

  std::map<std::string, std::string> configs_;
  int folders_ = 0;
};

std::vector<float> Decoded(const QuantizedWeight& w) {
  std::vector<float> values(w.rows * w.cols);
  for (int64_t r = 0; r < w.rows; ++r) DecodeRow(w.View(), r, 0, w.cols, &values[r * w.cols]);
  return values;
}

std::vector<float> FloatsOf(const Tensor& tensor) {
  std::vector<float> values(tensor.bytes.size() / sizeof(float));
  std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
  return values;
}

TEST_F(StoredWeightTest, DecodesAsTheProgramsThatWroteThem) {
  int cases = 0;
  for (const char* file : {"compressed.safetensors", "gptq.safetensors"}) {
    for (const auto& [name, parts] : Cases(file)) {
      SCOPED_TRACE(name);
      ++cases;
      const auto folder = Written(parts, ConfigOf(name));
      ASSERT_TRUE(HasStoredWeight(*folder, kWeight));
      EXPECT_EQ(StoredNames(*folder), std::vector<std::string>{kWeight});
      EXPECT_EQ(StoredParts(*folder, kWeight).size(), parts.size() - 1);
      const auto weight = ReadStoredWeight(*folder, kWeight);
      ASSERT_TRUE(weight.ok()) << weight.status();
      const Tensor& expected = parts.at("expected");
      EXPECT_EQ(weight->rows, expected.shape[0]);
      EXPECT_EQ(weight->cols, expected.shape[1]);
      EXPECT_EQ(Decoded(*weight), FloatsOf(expected));
      const auto size = StoredSizeOf(*folder, kWeight);
      ASSERT_TRUE(size.ok()) << size.status();
      EXPECT_EQ(size->format, weight->format);
      EXPECT_EQ(size->bytes, weight->Bytes());
    }
  }
  EXPECT_EQ(cases, 18);
}

// What takes memory of its own only where it is needed.
TEST_F(StoredWeightTest, ZerosAndOrderAreKeptWhereTheySayMore) {
  std::map<std::string, Case> cases = Cases("gptq.safetensors");
  const auto read = [&](const std::string& name) {
    return ReadStoredWeight(*Written(cases[name], ConfigOf(name)), kWeight).value();
  };
  EXPECT_TRUE(read("gptq4_sym").offsets.empty());
  EXPECT_FALSE(read("gptq4").offsets.empty());
  EXPECT_TRUE(read("gptq4").column_blocks.empty());
  EXPECT_FALSE(read("gptq4_order").column_blocks.empty());
  EXPECT_EQ(read("gptq8").format, Format::kInt8);
}

// Every scheme: the folder written, read back, holds what the quantiser made, and its configuration promises as much.
TEST_F(StoredWeightTest, QuantizedFoldersReadBack) {
  const auto source = ModelFolder::Open(std::string(kGolden) + "bnb_folder/source").value();
  for (const ScaledScheme& scheme : ScaledSchemes()) {
    SCOPED_TRACE(scheme.name);
    QuantizeFolderOptions options;
    options.quantize = {scheme.format, scheme.group, false};
    const std::string out = Path(std::string(scheme.name));
    const auto counts = QuantizeModelFolder(source->path(), out, options);
    if (scheme.group == 128) {
      EXPECT_THAT(std::string(counts.status().message()),
                  HasSubstr("columns, expected a multiple of 128 for int4_g128"));
      continue;
    }
    ASSERT_TRUE(counts.ok()) << counts.status();
    EXPECT_EQ(counts->at(std::string(InfoOf(scheme.format).name)).tensors, 7);
    EXPECT_EQ(counts->at("BF16").tensors, 4);
    const auto folder = ModelFolder::Open(out).value();
    const auto promised = ParseStoredScheme(folder->config()["quantization_config"], "config.json");
    if (scheme.format != Format::kE5M2) {
      ASSERT_TRUE(promised.ok()) << promised.status();
      EXPECT_EQ(promised->format, scheme.format);
      EXPECT_EQ(promised->group, scheme.group);
    }
    for (const TensorRef& ref : source->tensors()) {
      if (!IsDecoderLinear(ref.info->name)) continue;
      const auto read = ReadStoredWeight(*folder, ref.info->name);
      ASSERT_TRUE(read.ok()) << read.status();
      const QuantizedWeight made = QuantizeTensorScaled(ref, scheme.format, scheme.group).value();
      EXPECT_EQ(Decoded(*read), Decoded(made));
      EXPECT_EQ(read->codes, made.codes);
    }
    EXPECT_THAT(std::string(QuantizeModelFolder(out, out + "2", options).status().message()),
                HasSubstr("is quantised already"));
  }
}

struct Damage {
  const char* name;
  std::function<void(Case*)> change;
  const char* message;
};

TEST_F(StoredWeightTest, DamagedPartsAreNamed) {
  std::map<std::string, Case> cases = Cases("compressed.safetensors");
  for (auto& [name, parts] : Cases("gptq.safetensors")) cases[name] = parts;
  const auto drop = [](const char* part) { return [part](Case* c) { c->erase(part); }; };
  const auto retype = [](const char* part, TensorDType dtype) {
    return [part, dtype](Case* c) { c->at(part).dtype = dtype; };
  };
  const auto reshape = [](const char* part, std::vector<int64_t> shape) {
    return [part, shape](Case* c) { c->at(part).shape = shape; };
  };
  const auto poke = [](const char* part, const std::string& bytes) {
    return [part, bytes](Case* c) { c->at(part).bytes.replace(0, bytes.size(), bytes); };
  };
  const std::string nan32("\0\0\xc0\x7f", 4), nan16("\0\x7e", 2), many("\x7f\0\0\0", 4);
  const std::vector<Damage> damages = {
      {"int4_group", drop("weight_scale"), "has no tensor \"model.layers.0.self_attn.q_proj.weight_scale\""},
      {"int4_group", drop("weight_shape"), "weight_shape"},
      {"int4_group", retype("weight_packed", TensorDType::kF32), "is F32, expected I32"},
      {"int4_group", reshape("weight_packed", {128}), "expected a matrix"},
      {"int4_group", reshape("weight_packed", {32, 4}), "other widths are not read here"},
      {"int4_group", reshape("weight_scale", {32}), "expected one scale"},
      {"int4_group", retype("weight_scale", TensorDType::kI32), "expected F32, BF16 or F16"},
      {"int4_group", poke("weight_scale", nan32), "element 0 is nan"},
      {"int4_zero", retype("weight_zero_point", TensorDType::kF32), "expected I32"},
      {"int8_zero", reshape("weight_zero_point", {1, 16}), "has shape [1, 16]"},
      {"fp8_channel", poke("weight", "\x7f"), "element 0 is nan; a weight must be finite"},
      {"nvfp4_packed", poke("weight_scale", "\xff"), "expected a number that is not negative"},
      {"nvfp4_packed", drop("weight_global_scale"), "weight_global_scale\" of one element"},
      {"nvfp4_modelopt", poke("weight_scale_2", std::string(4, '\0')), "expected a scale above 0"},
      {"gptq4", drop("scales"), "has no tensor"},
      {"gptq4", drop("qzeros"), "has no tensor"},
      {"gptq4", retype("qweight", TensorDType::kF32), "is F32, expected I32"},
      {"gptq4", reshape("qweight", {256}), "expected a matrix"},
      {"gptq4", reshape("qweight", {64, 4}), "which groups of 32 and whole words of zeros do not fit"},
      {"gptq4", poke("scales", nan16), "element 0 is nan"},
      {"gptq4_order", poke("g_idx", many), "element 0 is 127, expected a group below 2"},
      {"awq", reshape("qzeros", {4, 2}), "has shape [4, 2]"},
  };
  for (const Damage& damage : damages) {
    SCOPED_TRACE(std::string(damage.name) + ": " + damage.message);
    Case parts = cases.at(damage.name);
    damage.change(&parts);
    const auto read = ReadStoredWeight(*Written(parts, ConfigOf(damage.name)), kWeight);
    ASSERT_FALSE(read.ok());
    EXPECT_THAT(std::string(read.status().message()), HasSubstr(damage.message));
  }
}

TEST_F(StoredWeightTest, ConfigurationsThatAreNotReadAreNamed) {
  const auto message = [](const char* text) {
    return std::string(ParseStoredScheme(nlohmann::json::parse(text), "config.json").status().message());
  };
  EXPECT_THAT(message(R"({"quant_method": "gptq", "bits": 5})"), HasSubstr("bits: expected 2, 3, 4 or 8, found 5"));
  EXPECT_THAT(message(R"({"quant_method": "gptq", "bits": 4, "group_size": 0})"), HasSubstr("group_size: expected -1"));
  EXPECT_THAT(message(R"({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"})"),
              HasSubstr("checkpoint_format: expected \"gptq\" or \"gptq_v2\", found \"marlin\""));
  EXPECT_THAT(message(R"({"quant_method": "awq", "bits": 8})"), HasSubstr("bits: expected 4, found 8"));
  EXPECT_THAT(message(R"({"quant_method": "awq", "bits": 4, "version": "gemv"})"),
              HasSubstr("version: expected \"gemm\""));
  EXPECT_THAT(message(R"({"quant_method": "aqlm"})"), HasSubstr("found quant_method aqlm"));
  EXPECT_THAT(message(R"({"quant_method": "modelopt", "quant_algo": "W4A8"})"), HasSubstr("quant_algo: expected"));
  EXPECT_THAT(message(R"({"quant_method": "compressed-tensors", "config_groups": {}})"), HasSubstr("one group"));
  EXPECT_EQ(message(R"({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": true})"), "");
}

}  // namespace
}  // namespace thimble
