// Folders into a store: every way a folder can be wrong is one message; 4-bit loads; what the log says about it.
#include "trainer/weight_loader.h"

#include <cmath>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "data/bnb_weight.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ops/check.h"
#include "tests/trainer/tiny_model.h"

namespace thimble {
namespace {

using testing::HasSubstr;

struct Tensor {
  TensorDType dtype = TensorDType::kF32;
  std::vector<int64_t> shape;
  std::vector<float> values;
};
using Tensors = std::map<std::string, Tensor>;

// The tiny model's weights by name.
Tensors TensorsOf(TinyModel* model, TensorDType dtype) {
  Tensors tensors;
  for (StoreId id = 0; id < static_cast<StoreId>(model->store().size()); ++id) {
    const StoreEntry& entry = model->store().entry(id);
    if (entry.category != Category::kParameters) continue;
    const Vector v = model->store().vector(id);
    const bool vector = absl::StrContains(entry.name, "norm");
    tensors[entry.name] = {dtype,
                           vector ? std::vector<int64_t>{entry.cols} : std::vector<int64_t>{entry.rows, entry.cols},
                           std::vector<float>(v.data, v.data + v.size)};
  }
  return tensors;
}

class WeightLoaderTest : public testing::Test {
 protected:
  WeightLoaderTest() : config_(TinyConfig()) {}

  Tensors MakeTensors(TensorDType dtype = TensorDType::kF32) {
    TinyModel model(config_);
    return TensorsOf(&model, dtype);
  }

  std::string Write(const Tensors& tensors) {
    const std::string path = folder_ / ("model" + std::to_string(written_++));
    std::vector<TensorSpec> specs;
    for (const auto& [name, tensor] : tensors) specs.push_back({name, tensor.dtype, tensor.shape});
    auto writer = ModelFolderWriter::Create(path, DecoderConfigJson(config_, "float32"), specs);
    EXPECT_TRUE(writer.ok()) << writer.status();
    for (const auto& [name, tensor] : tensors) {
      if (tensor.dtype == TensorDType::kI32) {
        const std::vector<int32_t> zeros(tensor.values.size());
        EXPECT_TRUE((*writer)->Append(name, zeros.data(), std::ssize(zeros) * 4).ok());
      } else {
        const absl::Status status =
            (*writer)->AppendFloats(name, ConstVector(tensor.values.data(), std::ssize(tensor.values)));
        EXPECT_TRUE(status.ok()) << status;
      }
    }
    EXPECT_TRUE((*writer)->Finish().ok());
    return path;
  }

  // Loads a folder into a fresh store.
  absl::Status Load(const std::string& path, const QuantizationOptions& quantization = {}) {
    auto folder = ModelFolder::Open(path);
    EXPECT_TRUE(folder.ok()) << folder.status();
    folder_of_ = std::move(*folder);
    ASSIGN_OR_RETURN(const DecoderConfig config, ReadDecoderConfig(*folder_of_));
    store_ = std::make_unique<Store>();
    ASSIGN_OR_RETURN(decoder_, DeclareDecoder(config, AdapterOptions(), /*train_weights=*/false, Compute::kF32,
                                              StorageFor(*folder_of_, quantization), store_.get()));
    store_->Allocate();
    return LoadWeights(*folder_of_, decoder_, quantization, store_.get());
  }

  std::vector<float> Decoded(const std::string& name) {
    const WeightView& view = store_->entry(store_->Find(name)).view;
    std::vector<float> values(view.rows * view.cols);
    DecodeRow(view, 0, 0, std::ssize(values), values.data());
    return values;
  }

  DecoderConfig config_;
  TempFolder folder_;
  int written_ = 0;
  std::unique_ptr<ModelFolder> folder_of_;
  std::unique_ptr<Store> store_;
  Decoder decoder_;
};

QuantizationOptions FourBit(Format format, int32_t block_size = 64, bool double_quant = true) {
  QuantizationOptions options;
  options.format = format;
  options.block_size = block_size;
  options.double_quant = double_quant;
  return options;
}

constexpr char kWeight[] = "model.layers.1.mlp.up_proj.weight";

TEST_F(WeightLoaderTest, ValuesArriveInTheFilesOwnFormat) {
  for (const TensorDType dtype : {TensorDType::kF32, TensorDType::kBF16, TensorDType::kF16}) {
    const Tensors tensors = MakeTensors(dtype);
    ASSERT_TRUE(Load(Write(tensors)).ok());
    for (const auto& [name, tensor] : tensors) {
      std::vector<float> expected = tensor.values;
      for (float& v : expected) {
        if (dtype == TensorDType::kBF16) v = BF16ToFloat(FloatToBF16(v));
        if (dtype == TensorDType::kF16) v = F16ToFloat(FloatToF16(v));
      }
      EXPECT_EQ(expected, Decoded(name)) << name;
    }
  }
}

TEST_F(WeightLoaderTest, EveryFaultIsOneMessageNamingFileAndTensor) {
  const auto fault = [&](const std::function<void(Tensors*)>& change, absl::StatusCode code, bool names_file = true,
                         const QuantizationOptions& quantization = {}) {
    Tensors tensors = MakeTensors();
    change(&tensors);
    const std::string path = Write(tensors);
    const absl::Status status = Load(path, quantization);
    EXPECT_EQ(status.code(), code) << status;
    const std::string message(status.message());
    EXPECT_THAT(message, HasSubstr(names_file ? path + "/model.safetensors" : path));
    EXPECT_EQ(message.find('\n'), std::string::npos);
    return message;
  };
  const auto invalid = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(fault([](Tensors* t) { t->erase(kWeight); }, absl::StatusCode::kNotFound, /*names_file=*/false),
              HasSubstr(kWeight));
  EXPECT_THAT(fault([](Tensors* t) { t->erase("model.norm.weight"); }, absl::StatusCode::kNotFound, false),
              HasSubstr("model.norm.weight"));
  EXPECT_THAT(fault(
                  [](Tensors* t) {
                    (*t)["model.layers.2.extra"] = {TensorDType::kF32, {2}, {1, 2}};
                  },
                  invalid),
              HasSubstr("unexpected tensor model.layers.2.extra"));
  EXPECT_THAT(fault(
                  [](Tensors* t) {
                    (*t)["model.layers.0.self_attn.q_proj.bias"] = {TensorDType::kF32, {2}, {1, 2}};
                  },
                  invalid),
              HasSubstr("unexpected tensor model.layers.0.self_attn.q_proj.bias"));
  const std::string shape =
      fault([](Tensors* t) { std::swap((*t)[kWeight].shape[0], (*t)[kWeight].shape[1]); }, invalid);
  EXPECT_THAT(shape, HasSubstr(kWeight));
  EXPECT_THAT(shape, HasSubstr("[32, 48]"));
  EXPECT_THAT(shape, HasSubstr("[48, 32]"));
  const std::string dtype = fault([](Tensors* t) { (*t)[kWeight].dtype = TensorDType::kI32; }, invalid);
  EXPECT_THAT(dtype, HasSubstr(kWeight));
  EXPECT_THAT(dtype, HasSubstr("I32"));
  const QuantizationOptions nf4 = FourBit(Format::kNF4);
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    for (const QuantizationOptions& quantization : {QuantizationOptions(), nf4}) {
      const std::string text =
          fault([bad](Tensors* t) { (*t)[kWeight].values[77] = bad; }, invalid, true, quantization);
      EXPECT_THAT(text, HasSubstr(kWeight));
      EXPECT_THAT(text, HasSubstr("NaN"));
    }
    EXPECT_THAT(fault([bad](Tensors* t) { (*t)["model.norm.weight"].values[3] = bad; }, invalid),
                HasSubstr("model.norm.weight"));
  }
  EXPECT_THAT(fault([](Tensors* t) { (*t)[kWeight].dtype = TensorDType::kI32; }, invalid, true, nf4), HasSubstr("I32"));
}

TEST_F(WeightLoaderTest, RotaryFrequenciesOfOldCheckpointsAreNoFault) {
  Tensors tensors = MakeTensors();
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = {TensorDType::kF32, {4}, {1, 2, 3, 4}};
  EXPECT_TRUE(Load(Write(tensors)).ok());
}

TEST_F(WeightLoaderTest, QuantisesFoldersOfEveryPlainFormat) {
  for (const bool double_quant : {false, true}) {
    for (const TensorDType dtype : {TensorDType::kF32, TensorDType::kBF16, TensorDType::kF16}) {
      const Tensors tensors = MakeTensors(dtype);
      const std::string path = Write(tensors);
      QuantizationOptions options = FourBit(Format::kNF4, 64, double_quant);
      options.skip = {"down_proj"};
      ASSERT_TRUE(Load(path, options).ok());
      const auto folder = ModelFolder::Open(path);
      const auto expected =
          QuantizeTensor(*(*folder)->Find(kWeight), {Format::kNF4, options.block_size, options.double_quant});
      ASSERT_TRUE(expected.ok()) << expected.status();
      std::vector<float> values(expected->rows * expected->cols);
      DecodeRow(expected->View(), 0, 0, std::ssize(values), values.data());
      EXPECT_EQ(values, Decoded(kWeight));
      EXPECT_EQ(store_->entry(store_->Find(kWeight)).view.format, Format::kNF4);
      EXPECT_EQ(store_->entry(store_->Find(kWeight)).bytes, expected->Bytes()) << "planned bytes are those taken";
      for (const char* plain : {"model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight", "lm_head.weight"}) {
        EXPECT_FALSE(Is4Bit(store_->entry(store_->Find(plain)).view.format)) << plain;
      }
    }
  }
}

TEST_F(WeightLoaderTest, SummaryCountsFormats) {
  ASSERT_TRUE(Load(Write(MakeTensors(TensorDType::kBF16)), FourBit(Format::kNF4)).ok());
  EXPECT_EQ(FormatSummary(*store_), "nf4: 14 tensors, 0.0 MiB; bf16: 2 tensors, 0.0 MiB; f32: 5 tensors, 0.0 MiB");
  ASSERT_TRUE(Load(Write(MakeTensors())).ok());
  EXPECT_EQ(FormatSummary(*store_), "f32: 21 tensors, 0.1 MiB");
}

TEST_F(WeightLoaderTest, TiedUnlessTheFileHoldsAnotherHead) {
  config_.tie_embeddings = true;
  Tensors tensors = MakeTensors();
  ASSERT_EQ(tensors.count("lm_head.weight"), 0u);
  ASSERT_TRUE(Load(Write(tensors)).ok());
  EXPECT_EQ(decoder_.head, decoder_.embedding);
  // A copy of the embedding is still tied, and no unexpected tensor.
  tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"];
  ASSERT_TRUE(Load(Write(tensors)).ok());
  EXPECT_EQ(decoder_.head, decoder_.embedding);
  EXPECT_TRUE(decoder_.config.tie_embeddings);
  tensors["lm_head.weight"].values.back() += 1;
  ASSERT_TRUE(Load(Write(tensors)).ok());
  EXPECT_NE(decoder_.head, decoder_.embedding);
  EXPECT_FALSE(decoder_.config.tie_embeddings);
  EXPECT_EQ(Decoded("lm_head.weight"), tensors["lm_head.weight"].values);
}

TEST_F(WeightLoaderTest, FoldersOfBitsandbytesLoadAsTheyAre) {
  for (const char* kind : {"nf4", "fp4"}) {
    const std::string path = std::string(THIMBLE_SOURCE_DIR "/tests/golden/bnb_folder/") + kind;
    // The options ask for something else: the folder's own codes win.
    const absl::Status status = Load(path, FourBit(Format::kNF4, 128));
    ASSERT_TRUE(status.ok()) << status;
    const Format format = kind == std::string("nf4") ? Format::kNF4 : Format::kFP4;
    const std::string name = "model.layers.0.self_attn.q_proj.weight";
    const StoreEntry& entry = store_->entry(store_->Find(name));
    EXPECT_EQ(entry.view.format, format);
    const auto stored = ReadBnbWeight(*folder_of_, name);
    ASSERT_TRUE(stored.ok()) << stored.status();
    EXPECT_EQ(entry.bytes, stored->weight.Bytes()) << "planned bytes are those taken";
    std::vector<float> values(stored->weight.rows * stored->weight.cols);
    DecodeRow(stored->weight.View(), 0, 0, std::ssize(values), values.data());
    EXPECT_EQ(values, Decoded(name));
    EngineOptions options;
    options.train = false;
    options.max_tokens = 16;
    Engine engine(&decoder_, store_.get(), options);
    const double loss = engine.Evaluate(RandomSample(16, 1, decoder_.config.vocab_size), nullptr);
    EXPECT_TRUE(std::isfinite(loss) && loss > 0) << loss;
  }
}

TEST_F(WeightLoaderTest, FingerprintSeesEveryChange) {
  const auto fingerprint = [&](const Tensors& tensors) {
    const auto folder = ModelFolder::Open(Write(tensors));
    return Fingerprint(**folder).value();
  };
  const Tensors tensors = MakeTensors();
  const std::string first = fingerprint(tensors);
  EXPECT_EQ(first, fingerprint(tensors));
  Tensors changed = tensors;
  changed[kWeight].values[5] = std::nextafter(changed[kWeight].values[5], 1.0f);
  EXPECT_NE(first, fingerprint(changed));
  config_.rms_norm_eps = 2e-5f;
  EXPECT_NE(first, fingerprint(tensors));
}

}  // namespace
}  // namespace thimble
