// GGUF files: what is written is read back, real files agree with their Hugging Face twins, and damaged ones are
// refused with one clear message.
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "data/file.h"
#include "data/gguf_header.h"
#include "data/gguf_model.h"
#include "data/gguf_tokenizer.h"
#include "data/gguf_writer.h"
#include "data/model_folder.h"
#include "data/model_tokens.h"
#include "data/tokenizer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/data/test_folder.h"

namespace thimble {
namespace {

using testing::HasSubstr;

GgufEntry U32(const std::string& key, int64_t value) { return GgufInteger(key, GgufType::kU32, value); }

// Metadata of a llama of one layer: 2 heads of 4, width 8, four tokens.
std::vector<GgufEntry> TinyEntries() {
  return {GgufString("general.architecture", "llama"),
          U32("llama.context_length", 64),
          U32("llama.embedding_length", 8),
          U32("llama.block_count", 1),
          U32("llama.feed_forward_length", 32),
          U32("llama.attention.head_count", 2),
          GgufFloat("llama.attention.layer_norm_rms_epsilon", 1e-5),
          GgufString("tokenizer.ggml.model", "llama"),
          GgufStrings("tokenizer.ggml.tokens", {"<unk>", "<s>", "</s>", "\xe2\x96\x81", "a", "b", "ab", "\u2581ab"}),
          GgufFloats("tokenizer.ggml.scores", {0, 0, 0, -9, -9, -9, -1, -2}),
          GgufIntegers("tokenizer.ggml.token_type", GgufType::kI32, {2, 3, 3, 1, 1, 1, 1, 1}),
          U32("tokenizer.ggml.bos_token_id", 1),
          U32("tokenizer.ggml.eos_token_id", 2),
          U32("tokenizer.ggml.padding_token_id", 0xffffffff)};  // as some files say none
}

class GgufTest : public TestFolder {
 protected:
  // A file of these tensors, counted up from 0.
  std::string WriteFile(const std::vector<GgufEntry>& entries, const std::vector<GgufTensorSpec>& specs) {
    const std::string path = Path("file.gguf");
    auto writer = GgufWriter::Create(path, entries, specs);
    EXPECT_TRUE(writer.ok()) << writer.status();
    for (const TensorInfo& info : (*writer)->tensors()) {
      std::vector<float> values(info.elements);
      for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
      EXPECT_TRUE((*writer)->AppendFloats(info.name, {values.data(), info.elements}).ok());
    }
    EXPECT_TRUE((*writer)->Finish().ok());
    return path;
  }
  std::string WriteBytes(const std::string& bytes) {
    std::ofstream(Path("damaged.gguf"), std::ios::binary) << bytes;
    return Path("damaged.gguf");
  }
  void ExpectRefused(const std::string& bytes, const std::string& part) {
    const absl::Status status = ReadGgufHeader(WriteBytes(bytes)).status();
    EXPECT_FALSE(status.ok()) << part;
    EXPECT_THAT(std::string(status.message()), HasSubstr(Path("damaged.gguf")));
    EXPECT_THAT(std::string(status.message()), HasSubstr(part));
  }
};

TEST_F(GgufTest, WhatIsWrittenIsReadBack) {
  std::vector<GgufEntry> entries = {GgufString("s", "text"),
                                    U32("u", 4000000000),
                                    GgufInteger("i", GgufType::kI8, -5),
                                    GgufInteger("w", GgufType::kU64, int64_t{1} << 40),
                                    GgufFloat("f", 0.5),
                                    GgufBool("b", true),
                                    GgufStrings("ss", {"", "x"}),
                                    GgufIntegers("ii", GgufType::kI32, {-1, 2}),
                                    GgufFloats("ff", {})};
  const std::string path = WriteFile(
      entries, {{"m", TensorDType::kQ4_0, {3, 64}}, {"v", TensorDType::kF32, {5}}, {"h", TensorDType::kF16, {2, 2}}});
  const auto header = ReadGgufHeader(path);
  ASSERT_TRUE(header.ok()) << header.status();
  ASSERT_EQ(header->entries().size(), entries.size());
  for (size_t i = 0; i < entries.size(); ++i) {
    const GgufValue &a = entries[i].value, &b = header->entries()[i].value;
    EXPECT_EQ(header->entries()[i].key, entries[i].key);
    EXPECT_TRUE(a.type == b.type && a.is_array == b.is_array && a.integers == b.integers && a.floats == b.floats &&
                a.strings == b.strings)
        << entries[i].key;
  }
  ASSERT_EQ(header->tensors().size(), 3u);
  EXPECT_EQ(header->tensors()[0].shape, (std::vector<int64_t>{3, 64}));
  EXPECT_EQ(header->tensors()[0].bytes, 6 * 18);
  EXPECT_EQ(header->tensors()[1].begin, 128);
  EXPECT_EQ(header->tensors()[2].begin, 160);
  EXPECT_EQ(header->data_begin() % 32, 0);
  EXPECT_EQ(static_cast<int64_t>(std::filesystem::file_size(path)), header->data_begin() + 192);
}

// Rows of q and k stand in pairs in the file, in order to readers, whatever range they ask for.
TEST_F(GgufTest, RowsOfHeadsAreReordered) {
  const std::string path = WriteFile(TinyEntries(), {{"token_embd.weight", TensorDType::kF32, {8, 8}},
                                                     {"blk.0.attn_q.weight", TensorDType::kF32, {8, 8}, 4},
                                                     {"blk.0.attn_v.weight", TensorDType::kF32, {8, 8}}});
  const auto header = ReadGgufHeader(path).value();
  const auto raw = TensorFile::OpenTable(path, header.data_begin(), header.tensors()).value();
  std::vector<float> stored(64);
  ASSERT_TRUE(raw->ReadFloats(*raw->Find("blk.0.attn_q.weight"), 0, 64, stored.data()).ok());
  // Row 2i + s of a head of the file is row 2s + i of the tensor.
  for (int head = 0; head < 2; ++head) {
    for (int i = 0; i < 2; ++i) {
      for (int s = 0; s < 2; ++s) {
        EXPECT_EQ(stored[(head * 4 + 2 * i + s) * 8 + 3], static_cast<float>((head * 4 + 2 * s + i) * 8 + 3));
      }
    }
  }
  const auto folder = ModelFolder::Open(path);
  ASSERT_TRUE(folder.ok()) << folder.status();
  const TensorRef* q = (*folder)->Find("model.layers.0.self_attn.q_proj.weight");
  ASSERT_NE(q, nullptr);
  for (int64_t first : {0, 3, 17}) {
    std::vector<float> values(40);
    ASSERT_TRUE(q->file->ReadFloats(*q->info, first, 40, values.data()).ok());
    for (int64_t i = 0; i < 40; ++i) EXPECT_EQ(values[i], static_cast<float>(first + i));
  }
  EXPECT_EQ((*folder)->config()["num_key_value_heads"], 2);
}

TEST_F(GgufTest, SentencePieceTokenizerOfMetadata) {
  const std::string path = WriteFile(TinyEntries(), {{"token_embd.weight", TensorDType::kF32, {8, 8}}});
  const auto tokenizer = Tokenizer::Load(path);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->Encode("ab", true), (std::vector<int32_t>{1, 7}));
  EXPECT_EQ((*tokenizer)->Encode("abab</s>", false), (std::vector<int32_t>{7, 6, 2}));
  EXPECT_EQ((*tokenizer)->Decode(std::vector<int32_t>{1, 7, 6}, true), "abab");
  const auto tokens = LoadModelTokens(path, **tokenizer);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(tokens->bos_id, 1);
  EXPECT_EQ(tokens->eos_token, "</s>");
  EXPECT_TRUE(tokens->add_bos);
}

TEST_F(GgufTest, DamagedFilesAreRefused) {
  const std::string good = ReadFile(WriteFile(TinyEntries(), {{"blk.0.attn_v.weight", TensorDType::kF32, {8, 8}},
                                                              {"blk.0.attn_q.weight", TensorDType::kQ8_0, {8, 32}}}))
                               .value();
  ASSERT_TRUE(ReadGgufHeader(WriteBytes(good)).ok());
  const size_t last_value = good.size() - 256 - 16 - 8;
  for (size_t length = 0; length < good.size() - 16; length += length < last_value ? 1 : 7) {
    EXPECT_FALSE(ReadGgufHeader(WriteBytes(good.substr(0, length))).ok()) << length;
  }
  const auto with = [&good](size_t at, const std::string& bytes) {
    std::string copy = good;
    copy.replace(at, bytes.size(), bytes);
    return copy;
  };
  ExpectRefused(with(0, "GGML"), "does not begin with GGUF");
  ExpectRefused(with(4, std::string("\0\0\0\3", 4)), "big-endian");
  ExpectRefused(with(4, "\7"), "version 7");
  ExpectRefused(with(8, std::string("\xff\xff\xff\xff\xff\xff\xff\xff", 8)), "the number of tensors");
  ExpectRefused(with(16, std::string("\0\0\0\0\1", 5)), "the number of metadata keys");
  const size_t key = good.find("llama.block_count");
  ExpectRefused(with(key - 8, std::string("\0\0\0\0\0\1", 6)), "the length of metadata key 3");
  ExpectRefused(with(key + 17, "\x0d"), "\"llama.block_count\" is of unknown type 13");
  ExpectRefused(with(good.find("tokenizer.ggml.bos"), "tokenizer.ggml.eos"), "eos_token_id\" is there twice");
  ExpectRefused(with(key, std::string("\xff\xfe", 2)), "metadata key 3 is empty or not UTF-8");
  const size_t scores = good.find("tokenizer.ggml.scores") + 21;
  ExpectRefused(with(scores + 4, "\x09"), "array of arrays");
  ExpectRefused(with(scores + 8, std::string("\xff\xff\xff\xff", 4)), "the length of metadata");
  const size_t tensor = good.find("blk.0.attn_q.weight") + 19;
  ExpectRefused(with(tensor, "\5"), "has 5 dimensions");
  ExpectRefused(with(tensor + 4, std::string("\x1f", 1)), "is Q8_0 with rows of 31, expected a multiple of 32");
  ExpectRefused(with(tensor + 4, std::string("\0", 1)), "of size 0");
  ExpectRefused(with(tensor + 10, std::string("\1", 1)), "reaches past the end of the file");
  ExpectRefused(with(tensor + 11, std::string("\x80", 1)), "too many elements");
  ExpectRefused(with(tensor + 20, std::string("\x0a", 1)), "is of ggml's type 10 (Q2_K)");
  ExpectRefused(with(tensor + 24, std::string("\1", 1)), "begins at byte 257 of the data, expected 256");
  ExpectRefused(with(tensor - 19, "blk.0.attn_v"), "tensor \"blk.0.attn_v.weight\" is there twice");
}

// Whatever a few changed bytes do, it is an answer or an error.
TEST_F(GgufTest, ChangedBytesNeverDoHarm) {
  const std::string good =
      ReadFile(WriteFile(TinyEntries(), {{"token_embd.weight", TensorDType::kF32, {8, 8}}})).value();
  std::mt19937 random(7);
  int refused = 0;
  for (int round = 0; round < 3000; ++round) {
    std::string bytes = good;
    for (uint32_t k = random() % 3 + 1; k > 0; --k) {
      bytes[random() % (bytes.size() - 256)] = static_cast<char>(random() % 4 == 0 ? 255 : random());
    }
    const std::string path = WriteBytes(bytes);
    const auto folder = ModelFolder::Open(path);
    const auto tokenizer = IsGgufFile(path) ? Tokenizer::Load(path).status() : absl::OkStatus();
    refused += !folder.ok() || !tokenizer.ok();
  }
  EXPECT_GT(refused, 500);
  EXPECT_LT(refused, 3000);
}

TEST_F(GgufTest, MetadataThatDoesNotSuitIsNamed) {
  struct Case {
    std::string key;
    GgufEntry entry;
    std::string part;
  };
  for (const Case& c : std::vector<Case>{
           {"general.architecture", GgufString("general.architecture", "bert"),
            "llama, qwen2, qwen3 or bitnet, found string bert"},
           {"llama.block_count", GgufFloat("llama.block_count", 1), "\"llama.block_count\": expected an integer"},
           {"llama.attention.head_count", U32("llama.attention.head_count_kv", 2), "\"llama.attention.head_count\""},
           {"llama.block_count", U32("llama.block_count", 0), "from 1"},
           {"llama.feed_forward_length", U32("other", 0), "found nothing"},
           {"tokenizer.ggml.scores", GgufFloats("tokenizer.ggml.scores", {1}), "expected 8 values of f32"},
           {"tokenizer.ggml.model", GgufString("tokenizer.ggml.model", "t5"), "gpt2"},
           {"tokenizer.ggml.bos_token_id", U32("tokenizer.ggml.bos_token_id", 8), "from 0 to 7, found u32 8"},
       }) {
    std::vector<GgufEntry> entries = TinyEntries();
    for (GgufEntry& entry : entries) {
      if (entry.key == c.key) entry = c.entry;
    }
    const std::string path = WriteFile(entries, {{"token_embd.weight", TensorDType::kF32, {8, 8}}});
    absl::Status status = ModelFolder::Open(path).status();
    if (status.ok()) status = Tokenizer::Load(path).status();
    EXPECT_FALSE(status.ok()) << c.part;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.part));
    EXPECT_THAT(std::string(status.message()), HasSubstr("file.gguf"));
  }
  const std::string path = WriteFile(TinyEntries(), {{"blk.0.ffn_moe.weight", TensorDType::kF32, {8, 8}}});
  EXPECT_THAT(std::string(ModelFolder::Open(path).status().message()), HasSubstr("unexpected tensor \"blk.0.ffn_moe"));
}

// The same model as GGUF and as safetensors, each made by others.
TEST_F(GgufTest, RealFileEqualsItsHuggingFaceTwin) {
  const std::string twin = AssetsFolder() + "models/stories260K", path = AssetsFolder() + "gguf/stories260K.gguf";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "needs the test assets: " << path << " (THIMBLE_ASSETS)";
  const auto gguf = ModelFolder::Open(path);
  const auto folder = ModelFolder::Open(twin);
  ASSERT_TRUE(gguf.ok() && folder.ok()) << gguf.status() << folder.status();
  for (const TensorRef& expected : (*folder)->tensors()) {
    const TensorRef* found = (*gguf)->Find(expected.info->name);
    ASSERT_NE(found, nullptr) << expected.info->name;
    ASSERT_EQ(found->info->shape, expected.info->shape) << expected.info->name;
    std::vector<float> a(expected.info->elements), b(a.size());
    ASSERT_TRUE(expected.file->ReadFloats(*expected.info, 0, expected.info->elements, a.data()).ok());
    ASSERT_TRUE(found->file->ReadFloats(*found->info, 0, found->info->elements, b.data()).ok());
    EXPECT_EQ(a, b) << expected.info->name;
  }
  for (const char* key : {"hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                          "intermediate_size", "vocab_size", "rope_theta", "tie_word_embeddings"}) {
    EXPECT_EQ((*gguf)->config()[key], (*folder)->config()[key]) << key;
  }
  const auto ours = Tokenizer::Load(path), theirs = Tokenizer::Load(twin);
  ASSERT_TRUE(ours.ok() && theirs.ok()) << ours.status() << theirs.status();
  std::string text = ReadFile(AssetsFolder() + "datasets/tinystories_sample.txt").value().substr(0, 60000);
  for (const char* more : {"", " ", "  a\n\n b", "\xc3\xa9\xf0\x9f\x98\x80 caf\xc3\xa9", "<s>x</s> y"}) text += more;
  EXPECT_EQ((*ours)->Encode(text, true), (*theirs)->Encode(text, true));
  EXPECT_EQ((*ours)->Decode((*ours)->Encode(text, true), true), (*theirs)->Decode((*theirs)->Encode(text, true), true));
}

// llama.cpp's own vocabularies and the ids that it expects.
TEST_F(GgufTest, VocabulariesGiveTheExpectedIds) {
  const std::string assets = AssetsFolder();
  if (!std::filesystem::exists(assets + "gguf")) GTEST_SKIP() << "needs the test assets (THIMBLE_ASSETS)";
  for (const char* name : {"llama-spm", "phi-3", "gpt-2", "deepseek-coder", "falcon", "starcoder"}) {
    SCOPED_TRACE(name);
    const std::string vectors = assets + "tokenizers/vectors/" + name + ".gguf";
    if (!std::filesystem::exists(vectors + ".inp")) continue;
    const auto tokenizer = Tokenizer::Load(assets + "gguf/ggml-vocab-" + name + ".gguf");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const std::string inputs = ReadFile(vectors + ".inp").value();
    std::istringstream outputs(ReadFile(vectors + ".out").value());
    const std::string separator = "\n__ggml_vocab_test__\n";
    size_t count = 0, at = 0;
    for (std::string line; at < inputs.size() && std::getline(outputs, line); ++count) {
      const size_t end = std::min(inputs.find(separator, at), inputs.size());
      const std::string text = inputs.substr(at, end - at);
      at = end + separator.size();
      std::istringstream words(line);
      std::vector<int32_t> want;
      for (int32_t id; words >> id;) want.push_back(id);
      EXPECT_EQ((*tokenizer)->Encode(text, false), want) << text;
    }
    EXPECT_GT(count, 40u);
  }
}

}  // namespace
}  // namespace thimble
