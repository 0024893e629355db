// TensorFile and SafetensorsWriter against files of the safetensors library and its verdicts on broken ones
// (tests/golden/safetensors/make.py).
#include "data/tensor_file.h"

#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "data/file.h"
#include "data/safetensors_writer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ops/format.h"

namespace thimble {
namespace {

using testing::HasSubstr;

std::string Golden(const std::string& name) {
  auto content = ReadFile(std::string(THIMBLE_SOURCE_DIR) + "/tests/golden/safetensors/" + name);
  EXPECT_TRUE(content.ok()) << content.status();
  return content.value_or("");
}

// A file of this process alone; in memory where the system allows, as thousands are written.
std::string TempPath(const std::string& name) {
  static const std::string folder = ::access("/dev/shm", W_OK) == 0 ? "/dev/shm" : testing::TempDir();
  return folder + "/tensor_file_test." + std::to_string(::getpid()) + "." + name;
}

void WriteRaw(const std::string& path, const std::string& content) {
  std::ofstream(path, std::ios::binary).write(content.data(), static_cast<std::streamsize>(content.size()));
}

std::string FileOf(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file + header + data;
}

// Opens `content`; when that works, reads every byte of every tensor.
absl::Status OpenAndReadAll(const std::string& path, const std::string& content) {
  WriteRaw(path, content);
  auto file = TensorFile::Open(path);
  if (!file.ok()) return file.status();
  for (const TensorInfo& tensor : (*file)->tensors()) {
    std::string bytes(static_cast<size_t>(tensor.bytes), '\0');
    const absl::Status status = (*file)->ReadBytes(tensor, 0, tensor.bytes, bytes.data());
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

TEST(TensorFileTest, AcceptsAndRejectsAsTheLibraryDoes) {
  const std::string path = TempPath("headers");
  std::istringstream lines(Golden("headers.txt"));
  std::string line;
  int count = 0;
  while (std::getline(lines, line)) {
    std::string content;
    for (size_t i = 2; i + 1 < line.size(); i += 2) {
      content.push_back(static_cast<char>(std::stoi(line.substr(i, 2), nullptr, 16)));
    }
    const absl::Status status = OpenAndReadAll(path, content);
    EXPECT_EQ(status.ok(), line[0] == '1') << count << ": " << content << "\n" << status;
    if (!status.ok()) {
      EXPECT_THAT(std::string(status.message()), HasSubstr(path));
    }
    ++count;
  }
  EXPECT_GT(count, 70);
  std::filesystem::remove(path);
}

TEST(TensorFileTest, AnyFlippedBitGivesTheLibrarysVerdict) {
  const std::string path = TempPath("flips");
  std::string content = Golden("mixed.safetensors");
  std::istringstream lines(Golden("flips.txt"));
  std::string line;
  for (size_t i = 0; i < content.size(); ++i) {
    ASSERT_TRUE(std::getline(lines, line));
    for (int bit = 0; bit < 8; ++bit) {
      content[i] = static_cast<char>(content[i] ^ (1 << bit));
      const absl::Status status = OpenAndReadAll(path, content);
      EXPECT_EQ(status.ok(), line[bit] == '1') << "byte " << i << " bit " << bit << ": " << status;
      content[i] = static_cast<char>(content[i] ^ (1 << bit));
    }
  }
  std::filesystem::remove(path);
}

TEST(TensorFileTest, CutAnywhereIsRefused) {
  const std::string path = TempPath("cut");
  const std::string content = Golden("mixed.safetensors");
  for (size_t length = 0; length < content.size(); ++length) {
    const absl::Status status = OpenAndReadAll(path, content.substr(0, length));
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << length << " " << status;
  }
  EXPECT_TRUE(OpenAndReadAll(path, content).ok());
  std::filesystem::remove(path);
}

TEST(TensorFileTest, MessagesNameFileTensorExpectedAndFound) {
  const std::string path = TempPath("messages");
  const auto message = [&path](const std::string& header, const std::string& data) {
    return std::string(OpenAndReadAll(path, FileOf(header, data)).message());
  };
  EXPECT_THAT(message(R"({"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,20]}})", std::string(20, 'x')),
              HasSubstr("tensor \"w\": data_offsets give 20 bytes, but F32 [2, 3] needs 24"));
  EXPECT_THAT(message(R"({"w":{"dtype":"f32","shape":[1],"data_offsets":[0,4]}})", "xxxx"),
              HasSubstr("tensor \"w\": unknown dtype \"f32\""));
  EXPECT_THAT(message(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                      R"("b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})",
                      "xxxxxxxx"),
              HasSubstr("tensor \"b\": its data begin at byte 2, expected 4 (overlap"));
  EXPECT_THAT(
      message(R"({"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})", "xxxxxxxx"),
      HasSubstr("tensor \"w\": its data end at byte 16 but the file has only 8 bytes of data: it is cut short"));
  std::filesystem::remove(path);
  EXPECT_EQ(TensorFile::Open(path).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(TensorFile::Open(testing::TempDir()).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(TensorFileTest, ReadsFloatsOfEveryWeightType) {
  const std::string path = TempPath("floats");
  WriteRaw(path, Golden("mixed.safetensors"));
  auto file = TensorFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->metadata().at("format"), "pt");
  EXPECT_EQ((*file)->Find("nothing"), nullptr);
  const TensorInfo* weight = (*file)->Find("layers.0.weight");
  ASSERT_NE(weight, nullptr);
  EXPECT_EQ(weight->shape, (std::vector<int64_t>{2, 3}));
  std::vector<float> values(4);
  ASSERT_TRUE((*file)->ReadFloats(*weight, 2, 4, values.data()).ok());
  EXPECT_EQ(values, (std::vector<float>{2, 3, 4, 5}));
  values.resize(2);
  ASSERT_TRUE((*file)->ReadFloats(*(*file)->Find("layers.0.bias"), 0, 2, values.data()).ok());
  EXPECT_EQ(values, (std::vector<float>{1.5f, -2.0f}));
  values.resize(3);
  ASSERT_TRUE((*file)->ReadFloats(*(*file)->Find("half"), 0, 3, values.data()).ok());
  EXPECT_EQ(values, (std::vector<float>{F16ToFloat(FloatToF16(0.1f)), 65504.0f, -0.0f}));
  const absl::Status status = (*file)->ReadFloats(*(*file)->Find("codes"), 0, 1, values.data());
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("tensor \"codes\": is U8, expected F32, BF16, F16 or a block type"));
  std::filesystem::remove(path);
}

TEST(TensorFileTest, NoticesThatAFileBecameShorter) {
  const std::string path = TempPath("shrinks");
  WriteRaw(path, Golden("mixed.safetensors"));
  auto file = TensorFile::Open(path);
  ASSERT_TRUE(file.ok());
  const TensorInfo last = (*file)->tensors().back();
  std::filesystem::resize_file(path, 100);
  std::string bytes(static_cast<size_t>(last.bytes), '\0');
  EXPECT_EQ((*file)->ReadBytes(last, 0, last.bytes, bytes.data()).code(), absl::StatusCode::kDataLoss);
  std::filesystem::remove(path);
}

// Writes again what `name` holds, in an order of tensors that the file does not have.
std::string Rewrite(const std::string& name) {
  const std::string source = TempPath("source"), path = TempPath("copy");
  WriteRaw(source, Golden(name));
  auto file = TensorFile::Open(source);
  EXPECT_TRUE(file.ok()) << file.status();
  std::vector<TensorSpec> specs;
  for (const TensorInfo& tensor : (*file)->tensors()) {
    specs.insert(specs.begin(), {tensor.name, tensor.dtype, tensor.shape});
  }
  auto writer = SafetensorsWriter::Create(path, specs, (*file)->metadata());
  EXPECT_TRUE(writer.ok()) << writer.status();
  for (const TensorSpec& spec : specs) {
    const TensorInfo* tensor = (*file)->Find(spec.name);
    std::string bytes(static_cast<size_t>(tensor->bytes), '\0');
    EXPECT_TRUE((*file)->ReadBytes(*tensor, 0, tensor->bytes, bytes.data()).ok());
    const int64_t half = tensor->bytes / 2;
    EXPECT_TRUE((*writer)->Append(spec.name, bytes.data(), half).ok());
    EXPECT_TRUE((*writer)->Append(spec.name, bytes.data() + half, tensor->bytes - half).ok());
  }
  EXPECT_FALSE(std::filesystem::exists(path));
  EXPECT_TRUE((*writer)->Finish().ok());
  EXPECT_FALSE(std::filesystem::exists(path + ".tmp"));
  std::string content = ReadFile(path).value_or("");
  std::filesystem::remove(source);
  std::filesystem::remove(path);
  return content;
}

TEST(SafetensorsWriterTest, WritesTheBytesOfTheLibrary) {
  for (const char* name : {"empty.safetensors", "scalar.safetensors", "mixed.safetensors"}) {
    EXPECT_EQ(Rewrite(name), Golden(name)) << name;
  }
}

TEST(SafetensorsWriterTest, RoundsFloats) {
  const std::string path = TempPath("rounds");
  auto writer = SafetensorsWriter::Create(
      path, {{"f", TensorDType::kF32, {3}}, {"b", TensorDType::kBF16, {3}}, {"h", TensorDType::kF16, {3}}});
  ASSERT_TRUE(writer.ok());
  const std::vector<float> values = {0.1f, -3.14159f, 1e-7f};
  for (const char* name : {"b", "f", "h"}) ASSERT_TRUE((*writer)->AppendFloats(name, {values.data(), 3}).ok());
  ASSERT_TRUE((*writer)->Finish().ok());
  auto file = TensorFile::Open(path);
  ASSERT_TRUE(file.ok());
  std::vector<float> read(3);
  for (const char* name : {"b", "f", "h"}) {
    ASSERT_TRUE((*file)->ReadFloats(*(*file)->Find(name), 0, 3, read.data()).ok());
    for (int i = 0; i < 3; ++i) {
      const float expected = *name == 'f'   ? values[i]
                             : *name == 'b' ? BF16ToFloat(FloatToBF16(values[i]))
                                            : F16ToFloat(FloatToF16(values[i]));
      EXPECT_EQ(read[i], expected);
    }
  }
  std::filesystem::remove(path);
}

TEST(SafetensorsWriterTest, RefusesWhatCannotBeStored) {
  const std::string path = TempPath("refused");
  const TensorSpec w{"w", TensorDType::kF32, {1}};
  EXPECT_THAT(std::string(SafetensorsWriter::Create(path, {w, w}).status().message()), HasSubstr("given twice"));
  EXPECT_FALSE(SafetensorsWriter::Create(path, {{"w", TensorDType::kF4, {3}}}).ok());
  EXPECT_FALSE(SafetensorsWriter::Create(path, {{"w", TensorDType::kU8, {int64_t{1} << 40, int64_t{1} << 40}}}).ok());
  EXPECT_EQ(SafetensorsWriter::Create(TempPath("none") + "/x", {w}).status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(std::filesystem::exists(path));
  EXPECT_FALSE(std::filesystem::exists(path + ".tmp"));
}

TEST(SafetensorsWriterTest, FailedOrAbandonedWriteLeavesTheOldFile) {
  const std::string path = TempPath("kept");
  WriteRaw(path, "old");
  const std::vector<float> values(1 << 16);
  const TensorSpec spec{"w", TensorDType::kF32, {1 << 16}};
  { ASSERT_TRUE(SafetensorsWriter::Create(path, {spec}).ok()); }
  EXPECT_EQ(ReadFile(path).value(), "old");
  EXPECT_FALSE(std::filesystem::exists(path + ".tmp"));
  // A file size limit stands for a full disk: the write fails in the middle.
  struct rlimit before;
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit small = before;
  small.rlim_cur = 4096;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  absl::Status status;
  {
    auto writer = SafetensorsWriter::Create(path, {spec});
    status = writer.ok() ? (*writer)->AppendFloats("w", {values.data(), 1 << 16}) : writer.status();
  }
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr(path));
  EXPECT_EQ(ReadFile(path).value(), "old");
  EXPECT_FALSE(std::filesystem::exists(path + ".tmp"));
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace thimble
