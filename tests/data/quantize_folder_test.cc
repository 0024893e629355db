// Quantising folders and reading quantised ones, against a folder that transformers with bitsandbytes saved
// (tests/golden/bnb_folder/make.py).
#include "data/quantize_folder.h"

#include <fcntl.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "data/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace thimble {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

const char kGolden[] = THIMBLE_SOURCE_DIR "/tests/golden/bnb_folder/";
const char kQProj[] = "model.layers.0.self_attn.q_proj.weight";

std::string Bytes(const TensorRef& tensor) {
  std::string bytes(static_cast<size_t>(tensor.info->bytes), '\0');
  EXPECT_TRUE(tensor.file->ReadBytes(*tensor.info, 0, tensor.info->bytes, bytes.data()).ok());
  return bytes;
}

std::vector<float> Floats(const TensorRef& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.info->elements));
  EXPECT_TRUE(tensor.file->ReadFloats(*tensor.info, 0, tensor.info->elements, values.data()).ok());
  return values;
}

class QuantizeFolderTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "/quantize_folder_test." + std::to_string(::getpid());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  // Writes the golden folder `from` again with one tensor's bytes or config changed.
  std::string Changed(
      const std::string& from, const std::string& tensor, const std::function<void(std::string*)>& change_bytes,
      const std::function<void(nlohmann::json*)>& change_config = [](nlohmann::json*) {}) const {
    const std::string path = folder_ + "/changed";
    fs::remove_all(path);
    const auto source = ModelFolder::Open(kGolden + from).value();
    nlohmann::json config = source->config();
    change_config(&config);
    std::vector<TensorSpec> specs;
    std::vector<std::string> contents;
    for (const TensorRef& ref : source->tensors()) {
      std::string bytes = Bytes(ref);
      std::vector<int64_t> shape = ref.info->shape;
      if (ref.info->name == tensor) {
        const size_t size = bytes.size();
        change_bytes(&bytes);
        if (bytes.empty()) continue;  // the tensor is left out
        if (bytes.size() != size) shape = {static_cast<int64_t>(bytes.size()) * 8 / BitsOf(ref.info->dtype)};
      }
      specs.push_back({ref.info->name, ref.info->dtype, shape});
      contents.push_back(bytes);
    }
    auto writer = ModelFolderWriter::Create(path, config, specs).value();
    for (size_t i = 0; i < specs.size(); ++i) {
      EXPECT_TRUE(writer->Append(specs[i].name, contents[i].data(), static_cast<int64_t>(contents[i].size())).ok());
    }
    EXPECT_TRUE(writer->Finish().ok());
    return path;
  }

  std::string folder_;
};

TEST_F(QuantizeFolderTest, WritesWhatBitsandbytesSaves) {
  for (const char* format : {"nf4", "fp4"}) {
    SCOPED_TRACE(format);
    QuantizeFolderOptions options;
    options.quantize.format = std::string(format) == "nf4" ? Format::kNF4 : Format::kFP4;
    options.quantize.double_quant = options.quantize.format == Format::kNF4;
    options.max_shard_bytes = 10000;
    const std::string out = folder_ + "/" + format;
    const auto counts = QuantizeModelFolder(std::string(kGolden) + "source", out, options);
    ASSERT_TRUE(counts.ok()) << counts.status();
    EXPECT_EQ(counts->at(format).tensors, 7);
    EXPECT_EQ(counts->at("BF16").tensors, 4);
    const auto mine = ModelFolder::Open(out).value();
    const auto peer = ModelFolder::Open(std::string(kGolden) + format).value();
    ASSERT_EQ(mine->tensors().size(), peer->tensors().size());
    for (const TensorRef& ref : peer->tensors()) {
      const std::string& name = ref.info->name;
      ASSERT_NE(mine->Find(name), nullptr) << name;
      if (name.find("quant_state") != std::string::npos) {
        EXPECT_EQ(nlohmann::json::parse(Bytes(*mine->Find(name))), nlohmann::json::parse(Bytes(ref))) << name;
      } else {
        EXPECT_EQ(mine->Find(name)->info->shape, ref.info->shape) << name;
        EXPECT_EQ(Bytes(*mine->Find(name)), Bytes(ref)) << name;
      }
    }
    EXPECT_EQ(mine->config()["quantization_config"], peer->config()["quantization_config"]);
    EXPECT_EQ(ReadFile(out + "/generation_config.json").value(),
              ReadFile(std::string(kGolden) + "source/generation_config.json").value());
  }
}

TEST_F(QuantizeFolderTest, ReadsWhatBitsandbytesSaved) {
  const auto source = ModelFolder::Open(std::string(kGolden) + "source").value();
  for (const char* format : {"nf4", "fp4"}) {
    const auto peer = ModelFolder::Open(std::string(kGolden) + format).value();
    EXPECT_FALSE(HasBnbWeight(*peer, "model.embed_tokens.weight"));
    EXPECT_EQ(CountTensors(*peer).at(format).tensors, 7);
    for (const TensorRef& ref : source->tensors()) {
      if (!IsDecoderLinear(ref.info->name)) continue;
      ASSERT_TRUE(HasBnbWeight(*peer, ref.info->name));
      const auto read = ReadBnbWeight(*peer, ref.info->name);
      ASSERT_TRUE(read.ok()) << read.status();
      EXPECT_EQ(read->dtype, TensorDType::kBF16);
      Quantize4BitOptions options;
      options.format = read->weight.format;
      options.double_quant = options.format == Format::kNF4;
      const auto quantized = QuantizeTensor(ref, options);
      ASSERT_TRUE(quantized.ok()) << quantized.status();
      const std::vector<float> expected = Floats(ref);
      std::vector<float> a(expected.size()), b(expected.size());
      DecodeRow(read->weight.View(), 0, 0, static_cast<int64_t>(a.size()), a.data());
      DecodeRow(quantized->View(), 0, 0, static_cast<int64_t>(b.size()), b.data());
      EXPECT_EQ(a, b);
      for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], expected[i], 0.03) << i;
    }
  }
}

TEST_F(QuantizeFolderTest, RefusesNaNAndInfinityByName) {
  for (const std::string& name :
       {std::string(kQProj), std::string("model.norm.weight"), std::string("model.embed_tokens.weight")}) {
    for (uint16_t bits : {uint16_t{0x7fc0}, uint16_t{0x7f80}, uint16_t{0xff80}}) {
      const std::string in = Changed(
          "source", name, [bits](std::string* bytes) { std::memcpy(bytes->data() + bytes->size() - 2, &bits, 2); });
      const absl::Status status = QuantizeModelFolder(in, folder_ + "/out", {}).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(std::string(status.message()), HasSubstr("tensor \"" + name + "\": holds NaN or infinity"));
      EXPECT_FALSE(fs::exists(folder_ + "/out"));
      EXPECT_FALSE(fs::exists(folder_ + "/out.thimble-tmp"));
    }
  }
}

TEST_F(QuantizeFolderTest, RefusesWhatItCannotQuantise) {
  const std::string out = folder_ + "/out";
  EXPECT_THAT(std::string(QuantizeModelFolder(std::string(kGolden) + "nf4", out, {}).status().message()),
              HasSubstr("quantised already"));
  const std::string short_tensor = Changed("source", kQProj, [](std::string* bytes) { bytes->resize(128); });
  EXPECT_THAT(std::string(QuantizeModelFolder(short_tensor, out, {}).status().message()),
              HasSubstr(std::string(kQProj) + "\": has shape [64], expected a matrix"));
  EXPECT_THAT(std::string(QuantizeModelFolder(std::string(kGolden) + "source", folder_, {}).status().message()),
              HasSubstr("already exists"));
}

TEST_F(QuantizeFolderTest, IsDecoderLinear) {
  EXPECT_TRUE(IsDecoderLinear("model.layers.12.mlp.down_proj.weight"));
  for (const char* name : {"lm_head.weight", "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.bias",
                           "model.layers.x.mlp.up_proj.weight", "model.layers..mlp.up_proj.weight",
                           "model.layers.0.input_layernorm.weight", "layers.0.up_proj.weight", ""}) {
    EXPECT_FALSE(IsDecoderLinear(name)) << name;
  }
}

struct Damage {
  std::string tensor;  // suffix after q_proj.weight
  std::function<void(std::string*)> change;
  std::string message;
};

TEST_F(QuantizeFolderTest, RefusesDamagedQuantisedWeights) {
  const auto replace = [](const std::string& old_text, const std::string& new_text) {
    return [old_text, new_text](std::string* bytes) {
      const size_t at = bytes->find(old_text);
      ASSERT_NE(at, std::string::npos) << *bytes;
      bytes->replace(at, old_text.size(), new_text);
    };
  };
  const auto set_float = [](float value) {
    return [value](std::string* bytes) { std::memcpy(bytes->data() + 4, &value, 4); };
  };
  const auto remove = [](std::string* bytes) { bytes->clear(); };
  const auto cut = [](std::string* bytes) { bytes->resize(bytes->size() - 4); };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::string state = ".quant_state.bitsandbytes__nf4";
  const std::vector<Damage> damages = {
      {"", cut, "bytes of codes, expected 2048 for [64, 64]"},
      {".absmax", remove, "has no tensor \"" + std::string(kQProj) + ".absmax\""},
      {".absmax", cut, "expected U8 [64]"},
      {".quant_map", remove, "has no tensor"},
      {".quant_map", set_float(0.5f), "is not the table of nf4"},
      {".nested_absmax", remove, "has no tensor"},
      {".nested_quant_map", cut, "expected F32 [256]"},
      {".nested_quant_map", set_float(nan), "element 1 is nan"},
      {state, remove, "has no 4-bit quantisation state"},
      {state, replace("{", "["), "is not a JSON object"},
      {state, replace("\"nf4\"", "\"fp4\""), "quant_type is \"fp4\", expected \"nf4\""},
      {state, replace("\"blocksize\": 64", "\"blocksize\": 63"), "blocksize is 63"},
      {state, replace("\"blocksize\": 64", "\"blocksize\": -1"), "blocksize is -1"},
      {state, replace("\"blocksize\": 64", "\"blocksize\": 128"), "expected U8 [32]"},
      {state, replace("bfloat16", "int8"), "dtype is \"int8\""},
      {state, replace("[64, 64]", "[64, 65]"), "bytes of codes, expected 2080"},
      {state, replace("[64, 64]", "[64, -64]"), "shape is [64,-64]"},
      {state, replace("[64, 64]", "[4611686018427387904, 4]"), "expected [out, in]"},
      {state, replace("[64, 64]", "64"), "expected [out, in]"},
      {state, replace("nested_offset", "nested_offsat"), "unknown key \"nested_offsat\""},
      {state, replace("256", "128"), "nested_blocksize is 128, expected 256"},
  };
  for (const Damage& damage : damages) {
    const std::string path = Changed("nf4", kQProj + damage.tensor, damage.change);
    const auto folder = ModelFolder::Open(path);
    ASSERT_TRUE(folder.ok()) << folder.status();
    const absl::Status status = ReadBnbWeight(**folder, kQProj).status();
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(std::string(status.message()), HasSubstr(damage.message));
  }
}

TEST_F(QuantizeFolderTest, AnyFlippedBitOfTheStateIsReadOrRefused) {
  const std::string state = std::string(kQProj) + ".quant_state.bitsandbytes__nf4";
  const auto golden = ModelFolder::Open(std::string(kGolden) + "nf4").value();
  const int64_t bytes = golden->Find(state)->info->bytes;
  const std::string path = Changed("nf4", "", [](std::string*) {});
  const auto folder = ModelFolder::Open(path).value();
  const TensorRef& ref = *folder->Find(state);
  const std::string file = ref.file->path();
  const std::string original = ReadFile(file).value();
  const size_t begin = original.find(Bytes(ref));
  ASSERT_NE(begin, std::string::npos);
  int refused = 0;
  for (int64_t i = 0; i < bytes; ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string content = original;
      content[begin + i] = static_cast<char>(content[begin + i] ^ (1 << bit));
      const int fd = ::open(file.c_str(), O_WRONLY);
      ASSERT_EQ(::pwrite(fd, &content[begin + i], 1, static_cast<off_t>(begin + i)), 1);
      const auto read = ReadBnbWeight(*folder, kQProj);
      if (read.ok()) {
        EXPECT_EQ(read->weight.codes.size(), 2048u);
        EXPECT_TRUE(std::isfinite(read->weight.nested_offset));
      } else {
        ++refused;
      }
      ASSERT_EQ(::pwrite(fd, &original[begin + i], 1, static_cast<off_t>(begin + i)), 1);
      ::close(fd);
    }
  }
  EXPECT_GT(refused, bytes);
}

}  // namespace
}  // namespace thimble
