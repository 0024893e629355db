// ModelFolder and ModelFolderWriter: single and sharded folders, and what is refused.
#include "data/model_folder.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "data/file.h"
#include "data/json_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace thimble {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

// An empty folder that is removed at the end.
class ModelFolderTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "/model_folder_test." + std::to_string(::getpid());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  void Write(const std::string& name, const std::string& content) const {
    std::ofstream(folder_ + "/" + name, std::ios::binary) << content;
  }
  // A file with one-element f32 tensors of these names.
  void WriteTensors(const std::string& name, const std::vector<std::string>& tensors) const {
    std::vector<TensorSpec> specs;
    for (const std::string& tensor : tensors) specs.push_back({tensor, TensorDType::kF32, {1}});
    auto writer = SafetensorsWriter::Create(folder_ + "/" + name, specs);
    ASSERT_TRUE(writer.ok()) << writer.status();
    const float value = 1;
    for (const std::string& tensor : tensors) ASSERT_TRUE((*writer)->AppendFloats(tensor, {&value, 1}).ok());
    ASSERT_TRUE((*writer)->Finish().ok());
  }
  std::string OpenMessage(absl::StatusCode code) const {
    const absl::Status status = ModelFolder::Open(folder_).status();
    EXPECT_EQ(status.code(), code) << status;
    return std::string(status.message());
  }

  std::string folder_;
};

TEST_F(ModelFolderTest, MissingPartsAreNamed) {
  EXPECT_EQ(ModelFolder::Open(folder_ + "/none").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(OpenMessage(absl::StatusCode::kNotFound), HasSubstr(folder_ + "/config.json"));
  Write("config.json", "{}");
  EXPECT_THAT(OpenMessage(absl::StatusCode::kNotFound), HasSubstr("has neither model.safetensors nor"));
  Write("pytorch_model.bin", "");
  EXPECT_THAT(OpenMessage(absl::StatusCode::kNotFound), HasSubstr("pytorch_model.bin is not read here"));
  EXPECT_EQ(ModelFolder::Open(folder_ + "/config.json").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ModelFolderTest, BrokenConfigNamesThePlace) {
  WriteTensors("model.safetensors", {"a"});
  Write("config.json", "{\n  \"a\": 1,\n  b\n}");
  EXPECT_THAT(OpenMessage(absl::StatusCode::kInvalidArgument),
              HasSubstr("config.json: is not valid JSON at line 3, column 3"));
  Write("config.json", "{\"a\": ");
  EXPECT_THAT(OpenMessage(absl::StatusCode::kInvalidArgument), HasSubstr("is it cut short?"));
  Write("config.json", "");
  EXPECT_THAT(OpenMessage(absl::StatusCode::kInvalidArgument), HasSubstr("line 1, column 1"));
  Write("config.json", "[1]");
  EXPECT_THAT(OpenMessage(absl::StatusCode::kInvalidArgument), HasSubstr("expected a JSON object, found array"));
}

TEST_F(ModelFolderTest, ShardsAreCheckedAgainstTheIndex) {
  Write("config.json", "{}");
  WriteTensors("model-00001-of-00002.safetensors", {"a", "b"});
  WriteTensors("model-00002-of-00002.safetensors", {"c"});
  const auto write_index = [this](const std::string& map) {
    Write("model.safetensors.index.json", "{\"metadata\": {}, \"weight_map\": " + map + "}");
  };
  write_index(R"({"a": "model-00001-of-00002.safetensors", "b": "model-00001-of-00002.safetensors",
                  "c": "model-00002-of-00002.safetensors"})");
  auto folder = ModelFolder::Open(folder_);
  ASSERT_TRUE(folder.ok()) << folder.status();
  EXPECT_EQ((*folder)->tensors().size(), 3u);
  EXPECT_THAT((*folder)->Find("c")->file->path(), HasSubstr("00002-of"));

  write_index(R"({"a": "model-00002-of-00002.safetensors"})");
  EXPECT_THAT(OpenMessage(absl::StatusCode::kInvalidArgument), HasSubstr("\"a\" is not in model-00002-of-00002"));
  write_index(R"({"d": "model-00001-of-00002.safetensors"})");
  EXPECT_THAT(OpenMessage(absl::StatusCode::kInvalidArgument), HasSubstr("\"d\" is not in model-00001-of-00002"));
  write_index(R"({"a": "model-00009-of-00002.safetensors"})");
  EXPECT_THAT(OpenMessage(absl::StatusCode::kNotFound), HasSubstr("shard model-00009-of-00002.safetensors"));
  for (const char* name : {"\"../x\"", "\"/etc/passwd\"", "\"\"", "\"..\"", "3", "null"}) {
    write_index(std::string("{\"a\": ") + name + "}");
    EXPECT_THAT(OpenMessage(absl::StatusCode::kInvalidArgument), HasSubstr("expected the name of a file"));
  }
  Write("model.safetensors.index.json", "{}");
  EXPECT_THAT(OpenMessage(absl::StatusCode::kInvalidArgument), HasSubstr("has no object weight_map"));
  WriteTensors("model-00002-of-00002.safetensors", {"c", "a"});
  write_index(R"({"a": "model-00001-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"})");
  EXPECT_THAT(OpenMessage(absl::StatusCode::kInvalidArgument), HasSubstr("tensor \"a\" is in both"));
}

TEST_F(ModelFolderTest, RequireTellsBothShapes) {
  Write("config.json", "{}");
  WriteTensors("model.safetensors", {"a"});
  auto folder = ModelFolder::Open(folder_);
  ASSERT_TRUE(folder.ok());
  EXPECT_TRUE((*folder)->Require("a", {1}).ok());
  EXPECT_THAT(std::string((*folder)->Require("a", {2, 3}).status().message()),
              HasSubstr("tensor \"a\" has shape [1], expected [2, 3]"));
  EXPECT_EQ((*folder)->Require("b", {1}).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ModelFolderTest, WritesShardsAndCarriesFiles) {
  Write("config.json", "{\"x\": 1}");
  WriteTensors("model.safetensors", {"a"});
  for (const char* name : {"tokenizer.json", "tokenizer.model", "chat_template.jinja", "generation_config.json"}) {
    Write(name, std::string("content of ") + name);
  }
  Write("README.md", "");
  auto source = ModelFolder::Open(folder_);
  ASSERT_TRUE(source.ok());
  EXPECT_THAT(CarriedFiles((*source)->path()),
              ElementsAre("chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer.model"));

  const std::string out = folder_ + "/out/";
  const std::vector<TensorSpec> specs = {{"z", TensorDType::kF32, {2}},
                                         {"y", TensorDType::kBF16, {2, 2}},
                                         {"x", TensorDType::kF32, {5}},
                                         {"w", TensorDType::kF32, {0}}};
  auto writer = ModelFolderWriter::Create(out, (*source)->config(), specs, 20);
  ASSERT_TRUE(writer.ok()) << writer.status();
  const std::vector<float> values = {1, 2, 3, 4, 5};
  ASSERT_TRUE((*writer)->AppendFloats("x", {values.data(), 5}).ok());
  ASSERT_TRUE((*writer)->AppendFloats("y", {values.data(), 4}).ok());
  ASSERT_TRUE((*writer)->AppendFloats("z", {values.data(), 2}).ok());
  ASSERT_TRUE((*writer)->CarryFiles((*source)->path()).ok());
  EXPECT_FALSE(fs::exists(out));
  ASSERT_TRUE((*writer)->Finish().ok());
  auto index = ReadJsonObject(out + "model.safetensors.index.json");
  ASSERT_TRUE(index.ok()) << index.status();
  EXPECT_EQ((*index)["metadata"]["total_size"], 36);
  EXPECT_EQ((*index)["metadata"]["total_parameters"], 11);
  EXPECT_EQ((*index)["weight_map"]["y"], "model-00001-of-00002.safetensors");
  EXPECT_EQ((*index)["weight_map"]["x"], "model-00002-of-00002.safetensors");
  auto written = ModelFolder::Open(out);
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_EQ((*written)->config(), (*source)->config());
  EXPECT_EQ(ReadFile(out + "tokenizer.model").value(), "content of tokenizer.model");
  std::vector<float> read(4);
  const TensorRef y = (*written)->Require("y", {2, 2}).value();
  ASSERT_TRUE(y.file->ReadFloats(*y.info, 0, 4, read.data()).ok());
  EXPECT_EQ(read, (std::vector<float>{1, 2, 3, 4}));
}

TEST_F(ModelFolderTest, NothingIsLeftOfAnUnfinishedFolder) {
  const std::string out = folder_ + "/out";
  const TensorSpec spec{"a", TensorDType::kF32, {1}};
  { ASSERT_TRUE(ModelFolderWriter::Create(out, nlohmann::json::object(), {spec}).ok()); }
  EXPECT_TRUE(fs::is_empty(folder_));
  EXPECT_FALSE(ModelFolderWriter::Create(out, nlohmann::json::object(), {spec, spec}).ok());
  EXPECT_TRUE(fs::is_empty(folder_));
  Write("kept", "old");
  EXPECT_THAT(std::string(ModelFolderWriter::Create(folder_, nlohmann::json::object(), {spec}).status().message()),
              HasSubstr("already exists"));
  EXPECT_FALSE(ModelFolderWriter::Create(folder_ + "/kept/out", nlohmann::json::object(), {spec}).ok());
  EXPECT_EQ(ReadFile(folder_ + "/kept").value(), "old");
}

}  // namespace
}  // namespace thimble
