// Files of named arrays: round trip, every flipped byte found, errors of disk and sources leave nothing behind.
#include "data/hdf5_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <numeric>
#include <thread>

#include "absl/strings/str_cat.h"
#include "data/checksum.h"
#include "data/file.h"

namespace thimble {
namespace {

using ::testing::HasSubstr;

class Hdf5FileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        std::filesystem::temp_directory_path() /
        absl::StrCat("thimble_hdf5_", ::getpid(), "_", ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder_);
    path_ = (folder_ / "file.h5").string();
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  int64_t FilesInFolder() const {
    return std::distance(std::filesystem::directory_iterator(folder_), std::filesystem::directory_iterator());
  }

  std::filesystem::path folder_;
  std::string path_;
};

TEST(ChecksumTest, KnownValues) {
  EXPECT_EQ(Crc32c("123456789", 9), 0xE3069283u);
  EXPECT_EQ(Crc32c("", 0), 0u);
  EXPECT_EQ(Crc32c("6789", 4, Crc32c("12345", 5)), 0xE3069283u);
  Sha256 empty;
  EXPECT_EQ(empty.HexDigest(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  Sha256 abc;
  abc.Update("a");
  abc.Update("bc");
  EXPECT_EQ(abc.HexDigest(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  Sha256 million;
  for (int i = 0; i < 1000; ++i) million.Update(std::string(1000, 'a'));
  EXPECT_EQ(million.HexDigest(), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST_F(Hdf5FileTest, RoundTripOfEveryTypeAndShape) {
  std::vector<float> f32(3 * 5);
  std::iota(f32.begin(), f32.end(), -4.25f);
  const std::vector<double> f64 = {1.5, -std::numeric_limits<double>::infinity()};
  std::vector<int32_t> i32(700001);  // more than one piece, an odd rest
  std::iota(i32.begin(), i32.end(), -9);
  const std::vector<int64_t> i64 = {std::numeric_limits<int64_t>::min(), 7};
  const std::vector<uint8_t> u8 = {0, 255, 3};
  const std::vector<uint16_t> u16 = {65535};
  Hdf5Writer writer;
  writer.AddArray("group/sub/f32", Hdf5Type::kF32, {3, 5}, f32.data());
  writer.AddArray("f64", Hdf5Type::kF64, {2}, f64.data());
  writer.AddArray("group/i32", Hdf5Type::kI32, {700001}, i32.data());
  writer.AddArray("i64", Hdf5Type::kI64, {2, 1}, i64.data());
  writer.AddArray("u8", Hdf5Type::kU8, {3}, u8.data());
  writer.AddArray("u16", Hdf5Type::kU16, {1, 1}, u16.data());
  writer.AddArray("none", Hdf5Type::kF32, {0, 8}, nullptr);
  const std::string nul("a\0b", 3);
  writer.AddText("text", "größe\nline 2");
  writer.AddText("empty", "");
  writer.AddText("nul", nul);
  writer.AddText("long", std::string(3000000, 'x'));
  writer.AddInt("step", -12345678901);
  writer.AddFloat("rate", 1e-300);
  ASSERT_TRUE(writer.Commit(path_).ok()) << writer.Commit(path_);
  EXPECT_EQ(FilesInFolder(), 1);

  auto reader = Hdf5Reader::Open(path_);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ(reader->entries().size(), 13u);
  std::vector<float> f32_read(15);
  EXPECT_TRUE(reader->Read("group/sub/f32", Hdf5Type::kF32, {3, 5}, f32_read.data()).ok());
  EXPECT_EQ(f32_read, f32);
  std::vector<int32_t> i32_read(700001);
  EXPECT_TRUE(reader->Read("group/i32", Hdf5Type::kI32, {700001}, i32_read.data()).ok());
  EXPECT_EQ(i32_read, i32);
  EXPECT_TRUE(reader->ReadRange("group/i32", Hdf5Type::kI32, 700000, 1, i32_read.data()).ok());
  EXPECT_EQ(i32_read[0], i32[700000]);
  std::vector<int64_t> i64_read(2);
  EXPECT_TRUE(reader->Read("i64", Hdf5Type::kI64, {2, 1}, i64_read.data()).ok());
  EXPECT_EQ(i64_read, i64);
  std::vector<uint8_t> u8_read(3);
  EXPECT_TRUE(reader->Read("u8", Hdf5Type::kU8, {3}, u8_read.data()).ok());
  EXPECT_EQ(u8_read, u8);
  std::vector<uint16_t> u16_read(1);
  EXPECT_TRUE(reader->Read("u16", Hdf5Type::kU16, {1, 1}, u16_read.data()).ok());
  EXPECT_EQ(u16_read, u16);
  EXPECT_TRUE(reader->Read("none", Hdf5Type::kF32, {0, 8}, nullptr).ok());
  EXPECT_EQ(*reader->Text("text"), "größe\nline 2");
  EXPECT_EQ(*reader->Text("empty"), "");
  EXPECT_EQ(*reader->Text("nul"), nul);
  EXPECT_EQ(reader->Text("long")->size(), 3000000u);
  EXPECT_EQ(*reader->Int("step"), -12345678901);
  EXPECT_EQ(*reader->Float("rate"), 1e-300);
}

TEST_F(Hdf5FileTest, WrongExpectationsNameEntryExpectedAndFound) {
  const float value = 1;
  Hdf5Writer writer;
  writer.AddArray("w", Hdf5Type::kF32, {1}, &value);
  ASSERT_TRUE(writer.Commit(path_).ok());
  auto reader = Hdf5Reader::Open(path_);
  ASSERT_TRUE(reader.ok());
  float out[4];
  EXPECT_THAT(reader->Read("w", Hdf5Type::kF32, {2}, out).message(), HasSubstr("expected shape [2], found [1]"));
  EXPECT_THAT(reader->Read("w", Hdf5Type::kI32, {1}, out).message(), HasSubstr("expected i32, found f32"));
  EXPECT_THAT(reader->Read("v", Hdf5Type::kF32, {1}, out).message(), HasSubstr("no entry 'v'"));
  EXPECT_THAT(reader->ReadRange("w", Hdf5Type::kF32, 1, 1, out).message(), HasSubstr("1 elements"));
  EXPECT_FALSE(reader->ReadRange("w", Hdf5Type::kF32, -1, 1, out).ok());
  EXPECT_FALSE(reader->ReadRange("w", Hdf5Type::kF32, 1, std::numeric_limits<int64_t>::max(), out).ok());
  EXPECT_FALSE(reader->Text("w").ok());
}

TEST_F(Hdf5FileTest, EveryFlippedByteAndEveryCutIsFound) {
  std::vector<float> values(50, 0.5f);
  Hdf5Writer writer;
  writer.AddArray("a/b", Hdf5Type::kF32, {5, 10}, values.data());
  writer.AddText("note", "hello");
  ASSERT_TRUE(writer.Commit(path_).ok());
  const std::string good = *ReadFile(path_);
  ASSERT_GT(good.size(), 800u);
  const std::string bad_path = path_ + ".bad";
  { std::ofstream(bad_path, std::ios::binary) << good; }
  std::fstream file(bad_path, std::ios::binary | std::ios::in | std::ios::out);
  for (size_t i = 0; i < good.size(); ++i) {
    file.seekp(static_cast<std::streamoff>(i)).put(static_cast<char>(good[i] ^ (1 << (i % 8)))).flush();
    ASSERT_EQ(Hdf5Reader::Open(bad_path).status().code(), absl::StatusCode::kDataLoss) << "byte " << i;
    file.seekp(static_cast<std::streamoff>(i)).put(good[i]).flush();
  }
  EXPECT_TRUE(Hdf5Reader::Open(bad_path).ok());
  for (size_t size = 0; size < good.size(); size += 37) {
    { std::ofstream(bad_path, std::ios::binary) << good.substr(0, size); }
    ASSERT_EQ(Hdf5Reader::Open(bad_path).status().code(), absl::StatusCode::kDataLoss) << "size " << size;
  }
  { std::ofstream(bad_path, std::ios::binary) << good << "x"; }
  EXPECT_EQ(Hdf5Reader::Open(bad_path).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Hdf5Reader::Open(path_ + ".none").status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(Hdf5Reader::Open(folder_.string()).ok());
}

TEST_F(Hdf5FileTest, EqualContentsGiveEqualFiles) {
  const float value = 1;
  Hdf5Writer writer;
  writer.AddArray("w", Hdf5Type::kF32, {1}, &value);
  ASSERT_TRUE(writer.Commit(path_).ok());
  ASSERT_TRUE(writer.Commit(path_ + "2").ok());
  EXPECT_EQ(*ReadFile(path_), *ReadFile(path_ + "2"));
}

TEST_F(Hdf5FileTest, FailingSourceLeavesThePreviousFile) {
  Hdf5Writer first;
  first.AddInt("n", 1);
  ASSERT_TRUE(first.Commit(path_).ok());
  const std::string before = *ReadFile(path_);
  Hdf5Writer second;
  second.AddArray("x", Hdf5Type::kU8, {5}, [](int64_t, absl::Span<char>) { return absl::DataLossError("broken"); });
  EXPECT_EQ(second.Commit(path_).message(), "broken");
  EXPECT_EQ(*ReadFile(path_), before);
  EXPECT_EQ(FilesInFolder(), 1);
}

TEST_F(Hdf5FileTest, MissingFolderIsNotFound) {
  Hdf5Writer writer;
  writer.AddInt("n", 1);
  EXPECT_EQ(writer.Commit((folder_ / "none" / "f.h5").string()).code(), absl::StatusCode::kNotFound);
}

// A limit on file sizes stands for a full disk: in a child process, since it cannot be raised again.
TEST_F(Hdf5FileTest, FullDiskLeavesThePreviousFile) {
  Hdf5Writer first;
  first.AddInt("n", 1);
  ASSERT_TRUE(first.Commit(path_).ok());
  const std::string before = *ReadFile(path_);
  std::vector<float> large(1 << 18, 1.0f);
  Hdf5Writer second;
  second.AddArray("large", Hdf5Type::kF32, {1 << 18}, large.data());
  for (const rlim_t limit : {100, 600, 2000, 500000}) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      ::signal(SIGXFSZ, SIG_IGN);
      const rlimit bound{limit, limit};
      ::setrlimit(RLIMIT_FSIZE, &bound);
      std::exit(second.Commit(path_).ok() ? 1 : 0);  // runs HDF5's own clean-up
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "limit " << limit << " status " << status;
    EXPECT_EQ(*ReadFile(path_), before);
    EXPECT_EQ(FilesInFolder(), 1);
  }
}

TEST_F(Hdf5FileTest, ReadsFromSeveralThreads) {
  std::vector<int32_t> values(100000);
  std::iota(values.begin(), values.end(), 0);
  Hdf5Writer writer;
  writer.AddArray("v", Hdf5Type::kI32, {100000}, values.data());
  ASSERT_TRUE(writer.Commit(path_).ok());
  auto reader = Hdf5Reader::Open(path_);
  ASSERT_TRUE(reader.ok());
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int64_t i = t; i < 2000; i += 4) {
        int32_t value = -1;
        if (!reader->ReadRange("v", Hdf5Type::kI32, i * 50, 1, &value).ok() || value != i * 50) ++wrong[t];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(std::accumulate(wrong.begin(), wrong.end(), 0), 0);
}

}  // namespace
}  // namespace thimble
