// Batches: bins, windows, shifted targets, sample borders, shuffling that can be resumed.
#include "data/packing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>

namespace thimble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Row r has tokens 1000 r, 1000 r + 1, ...; the first `prompt` tokens (at least one) are no targets.
EncodedRow MakeRow(int64_t r, int64_t length, int64_t prompt) {
  EncodedRow row;
  for (int64_t t = 0; t < length; ++t) {
    row.tokens.push_back(static_cast<int32_t>(1000 * r + t));
    row.is_target.push_back(t >= std::max<int64_t>(prompt, 1) ? 1 : 0);
  }
  return row;
}

std::shared_ptr<const TokenRows> MakeRows(const std::vector<int64_t>& lengths, int64_t prompt = 1) {
  auto rows = std::make_shared<TokenRows>();
  for (size_t r = 0; r < lengths.size(); ++r) rows->Append(MakeRow(static_cast<int64_t>(r), lengths[r], prompt));
  return rows;
}

std::vector<int64_t> RandomLengths(int count, int64_t longest, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int64_t> lengths(count);
  for (int64_t& length : lengths) length = 2 + static_cast<int64_t>(random() % (longest - 1));
  return lengths;
}

// Checks what every batch must satisfy and returns the rows in it by first token.
std::vector<int32_t> CheckBatch(const Batch& batch) {
  const size_t size = batch.tokens.size();
  EXPECT_EQ(batch.positions.size(), size);
  EXPECT_EQ(batch.starts.size(), size);
  EXPECT_EQ(batch.targets.size(), size);
  std::vector<int32_t> firsts;
  int64_t targets = 0;
  for (size_t t = 0; t < size; ++t) {
    EXPECT_EQ(batch.starts[t] + batch.positions[t], static_cast<int32_t>(t));
    if (batch.positions[t] == 0) firsts.push_back(batch.tokens[t]);
    const bool last = t + 1 == size || batch.positions[t + 1] == 0;
    if (batch.targets[t] != -100) {
      ++targets;
      EXPECT_EQ(batch.targets[t], batch.tokens[t] + 1);
      EXPECT_TRUE(last || batch.targets[t] == batch.tokens[t + 1]);
    }
  }
  EXPECT_EQ(targets, batch.num_targets);
  EXPECT_EQ(static_cast<int64_t>(firsts.size()), batch.num_samples);
  return firsts;
}

TEST(PackingTest, UnpackedInFileOrder) {
  PackingOptions options{.mode = PackingMode::kUnpacked, .seq_len = 8, .micro_batch_size = 2, .shuffle = false};
  auto stream = BatchStream::Make(MakeRows({3, 4, 2}, 2), options);
  ASSERT_TRUE(stream.ok()) << stream.status();
  EXPECT_EQ(stream->stats().rows_no_targets, 1);
  Batch batch;
  ASSERT_TRUE(stream->Next(&batch).ok());
  EXPECT_THAT(batch.tokens, ElementsAre(0, 1, 2, 1000, 1001, 1002, 1003));
  EXPECT_THAT(batch.positions, ElementsAre(0, 1, 2, 0, 1, 2, 3));
  EXPECT_THAT(batch.starts, ElementsAre(0, 0, 0, 3, 3, 3, 3));
  EXPECT_THAT(batch.targets, ElementsAre(-100, 2, -100, -100, 1002, 1003, -100));
  EXPECT_EQ(batch.num_targets, 3);
  EXPECT_EQ(stream->position().epoch, 1);
}

TEST(PackingTest, PiecesSayWhatABatchIsMadeOf) {
  for (const PackingMode mode : {PackingMode::kPacked, PackingMode::kUnpacked, PackingMode::kWindows}) {
    PackingOptions options{.mode = mode, .seq_len = 16, .micro_batch_size = 3, .seed = 5};
    auto stream = BatchStream::Make(MakeRows(RandomLengths(40, 16, 3)), options);
    ASSERT_TRUE(stream.ok()) << stream.status();
    for (int i = 0; i < 2 * stream->batches_per_epoch(); ++i) {
      const int64_t index = stream->position().index;
      Batch batch;
      ASSERT_TRUE(stream->Next(&batch).ok());
      std::vector<int32_t> tokens;
      for (const Piece& piece : stream->PiecesAt(index)) {
        for (int64_t t = 0; t < piece.count; ++t) {
          tokens.push_back(static_cast<int32_t>(1000 * piece.row + piece.first + t));
        }
      }
      EXPECT_EQ(tokens, batch.tokens);
    }
  }
}

TEST(PackingTest, BinsHoldEveryRowOnceInEveryEpoch) {
  for (const int64_t micro_batch : {1, 3}) {
    const auto lengths = RandomLengths(500, 64, 7);
    PackingOptions options{.seq_len = 64, .micro_batch_size = micro_batch, .seed = 5};
    auto stream = BatchStream::Make(MakeRows(lengths), options);
    ASSERT_TRUE(stream.ok());
    const int64_t total = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
    EXPECT_EQ(stream->stats().tokens, total);
    EXPECT_EQ(stream->stats().targets, total - 500);
    EXPECT_GE(static_cast<double>(total) / static_cast<double>(stream->stats().bins * 64), 0.97);
    std::vector<std::vector<int32_t>> epochs;
    for (int epoch = 0; epoch < 3; ++epoch) {
      std::vector<int32_t> firsts;
      int64_t targets = 0;
      for (int64_t i = 0; i < stream->batches_per_epoch(); ++i) {
        EXPECT_EQ(stream->position().epoch, epoch);
        Batch batch;
        ASSERT_TRUE(stream->Next(&batch).ok());
        EXPECT_LE(static_cast<int64_t>(batch.tokens.size()), stream->max_batch_tokens());
        EXPECT_LE(static_cast<int64_t>(batch.tokens.size()), 64 * micro_batch);
        const auto rows = CheckBatch(batch);
        firsts.insert(firsts.end(), rows.begin(), rows.end());
        targets += batch.num_targets;
      }
      EXPECT_EQ(targets, stream->stats().targets);
      epochs.push_back(firsts);
      std::sort(firsts.begin(), firsts.end());
      ASSERT_EQ(firsts.size(), 500u);
      for (int r = 0; r < 500; ++r) EXPECT_EQ(firsts[r], 1000 * r);
    }
    EXPECT_NE(epochs[0], epochs[1]);
    EXPECT_NE(epochs[1], epochs[2]);
  }
}

TEST(PackingTest, BestFitMatchesAnObviousReference) {
  const auto lengths = RandomLengths(200, 50, 3);
  PackingOptions options{.seq_len = 50, .shuffle = false};
  auto stream = BatchStream::Make(MakeRows(lengths), options);
  ASSERT_TRUE(stream.ok());
  std::vector<int64_t> sorted = lengths;
  std::sort(sorted.rbegin(), sorted.rend());
  std::vector<int64_t> left;
  for (const int64_t length : sorted) {
    int best = -1;
    for (size_t b = 0; b < left.size(); ++b) {
      if (left[b] >= length && (best < 0 || left[b] < left[best])) best = static_cast<int>(b);
    }
    if (best < 0) {
      left.push_back(50);
      best = static_cast<int>(left.size()) - 1;
    }
    left[best] -= length;
  }
  std::vector<int64_t> expected;
  expected.reserve(left.size());
  for (const int64_t tokens : left) expected.push_back(50 - tokens);
  std::vector<int64_t> found;
  for (int64_t i = 0; i < stream->batches_per_epoch(); ++i) {
    Batch batch;
    ASSERT_TRUE(stream->Next(&batch).ok());
    found.push_back(static_cast<int64_t>(batch.tokens.size()));
  }
  std::sort(expected.begin(), expected.end());
  std::sort(found.begin(), found.end());
  EXPECT_EQ(found, expected);
}

TEST(PackingTest, SeekGivesTheSameBatches) {
  for (const PackingMode mode : {PackingMode::kPacked, PackingMode::kUnpacked, PackingMode::kWindows}) {
    PackingOptions options{.mode = mode, .seq_len = 40, .micro_batch_size = 2, .seed = 11};
    const auto rows = MakeRows(RandomLengths(60, 40, 1));
    auto stream = BatchStream::Make(rows, options);
    ASSERT_TRUE(stream.ok());
    std::vector<DataPosition> positions;
    std::vector<Batch> batches;
    for (int64_t i = 0; i < 2 * stream->batches_per_epoch() + 3; ++i) {
      positions.push_back(stream->position());
      batches.emplace_back();
      ASSERT_TRUE(stream->Next(&batches.back()).ok());
    }
    auto other = BatchStream::Make(rows, options);
    for (const size_t i : {batches.size() - 1, size_t{0}, batches.size() / 2, size_t{1}}) {
      ASSERT_TRUE(other->Seek(positions[i]).ok());
      Batch batch;
      ASSERT_TRUE(other->Next(&batch).ok());
      EXPECT_EQ(batch.tokens, batches[i].tokens);
      EXPECT_EQ(batch.targets, batches[i].targets);
    }
    EXPECT_EQ(other->Seek({0, other->batches_per_epoch()}).code(), absl::StatusCode::kOutOfRange);
    EXPECT_FALSE(other->Seek({-1, 0}).ok());
  }
}

TEST(PackingTest, StepsCountTargetsAndEndWithTheEpoch) {
  PackingOptions options{.mode = PackingMode::kUnpacked, .seq_len = 40};
  auto stream = BatchStream::Make(MakeRows(RandomLengths(10, 40, 2)), options);
  ASSERT_TRUE(stream.ok());
  EXPECT_EQ(stream->steps_per_epoch(4), 3);
  int64_t sum = 0;
  std::vector<Batch> batches;
  std::vector<const int32_t*> places;
  for (const int64_t expected : {4, 4, 2, 4}) {
    int64_t targets = 0;
    EXPECT_EQ(stream->NextStep(4, &batches, &targets).value(), expected);
    ASSERT_EQ(batches.size(), 4u) << "what was not needed keeps its memory";
    int64_t found = 0;
    for (int64_t i = 0; i < expected; ++i) found += batches[i].num_targets;
    EXPECT_EQ(found, targets);
    if (stream->position().epoch == 0 || expected == 2) sum += targets;
    for (const Batch& batch : batches) places.push_back(batch.tokens.data());
  }
  for (size_t i = 4; i < places.size(); ++i) EXPECT_EQ(places[i], places[i - 4]);
  EXPECT_EQ(sum, stream->stats().targets);
  EXPECT_EQ(stream->position().epoch, 1);
}

TEST(PackingTest, TooLongRowsAreCutDroppedOrFail) {
  const auto rows = MakeRows({10, 4, 20, 6}, 5);
  PackingOptions options{.mode = PackingMode::kUnpacked, .too_long = TooLong::kCut, .seq_len = 6, .shuffle = false};
  auto stream = BatchStream::Make(rows, options);
  ASSERT_TRUE(stream.ok());
  EXPECT_EQ(stream->stats().rows_cut, 2);
  EXPECT_EQ(stream->stats().rows_kept, 3);
  EXPECT_EQ(stream->stats().rows_no_targets, 1);
  EXPECT_EQ(stream->stats().targets, 3);
  EXPECT_EQ(stream->stats().tokens, 18);
  EXPECT_EQ(stream->stats().longest_row, 20);
  EXPECT_EQ(stream->stats().median_row, 10);
  options.too_long = TooLong::kDrop;
  stream = BatchStream::Make(rows, options);
  ASSERT_TRUE(stream.ok());
  EXPECT_EQ(stream->stats().rows_dropped, 2);
  EXPECT_EQ(stream->stats().rows_kept, 1);
  options.too_long = TooLong::kFail;
  EXPECT_THAT(BatchStream::Make(rows, options).status().message(), HasSubstr("row 1 of the data set has 10 tokens"));
  options.too_long = TooLong::kCut;
  options.seq_len = 5;
  EXPECT_THAT(BatchStream::Make(rows, options).status().message(), HasSubstr("no targets"));
  options.seq_len = 1;
  EXPECT_FALSE(BatchStream::Make(rows, options).ok());
  EXPECT_THAT(BatchStream::Make(std::make_shared<TokenRows>(), {}).status().message(), HasSubstr("no rows"));
}

TEST(PackingTest, WindowsPredictEveryTokenOnce) {
  const std::vector<int64_t> lengths = {5, 1, 17, 8, 2};
  for (const bool separate : {true, false}) {
    for (const int64_t seq_len : {2, 7, 100}) {
      PackingOptions options{.mode = PackingMode::kWindows, .seq_len = seq_len, .shuffle = false};
      options.separate_documents = separate;
      auto rows = std::make_shared<TokenRows>();
      for (size_t r = 0; r < lengths.size(); ++r) rows->Append(MakeRow(static_cast<int64_t>(r), lengths[r], 1));
      auto stream = BatchStream::Make(rows, options);
      ASSERT_TRUE(stream.ok());
      std::vector<int32_t> tokens;
      std::vector<int32_t> targets;
      for (int64_t i = 0; i < stream->batches_per_epoch(); ++i) {
        Batch batch;
        ASSERT_TRUE(stream->Next(&batch).ok());
        if (separate) CheckBatch(batch);
        EXPECT_TRUE(separate || batch.num_samples == 1);
        EXPECT_TRUE(i + 1 == stream->batches_per_epoch() || static_cast<int64_t>(batch.tokens.size()) == seq_len);
        tokens.insert(tokens.end(), batch.tokens.begin(), batch.tokens.end());
        for (const int32_t target : batch.targets) {
          if (target != -100) targets.push_back(target);
        }
      }
      // A row of one token has nothing to learn.
      EXPECT_EQ(tokens.size(), 32u);
      EXPECT_EQ(targets.size(), 28u);
      EXPECT_EQ(stream->stats().targets, 28);
      EXPECT_TRUE(std::is_sorted(tokens.begin(), tokens.end()));
      EXPECT_TRUE(std::is_sorted(targets.begin(), targets.end()));
    }
  }
}

TEST(PackingTest, ShuffledOrderIsAPermutation) {
  for (const int64_t count : {0, 1, 2, 1000}) {
    auto order = ShuffledOrder(count, 3, 4);
    EXPECT_EQ(order, ShuffledOrder(count, 3, 4));
    if (count > 2) {
      EXPECT_NE(order, ShuffledOrder(count, 3, 5));
      EXPECT_NE(order, ShuffledOrder(count, 4, 4));
    }
    std::sort(order.begin(), order.end());
    for (int64_t i = 0; i < count; ++i) EXPECT_EQ(order[i], i);
  }
}

TEST(TokenRowsTest, RowsThatComeInPieces) {
  TokenRows rows;
  EncodedRow row{{1, 2}, {0, 0}};
  rows.Append(row);
  EXPECT_EQ(rows.first_target(0), 2);
  rows.ExtendLast({{3, 4}, {0, 1}});
  rows.Append({{5}, {0}});
  EXPECT_EQ(rows.size(), 2);
  EXPECT_EQ(rows.length(0), 4);
  EXPECT_EQ(rows.first_target(0), 3);
  EXPECT_EQ(rows.num_targets(0), 1);
  EXPECT_EQ(rows.first_target(1), 1);
  std::vector<int32_t> tokens;
  std::vector<uint8_t> is_target;
  ASSERT_TRUE(rows.Read(0, 1, 3, &tokens, &is_target).ok());
  EXPECT_THAT(tokens, ElementsAre(2, 3, 4));
  EXPECT_THAT(is_target, ElementsAre(0, 0, 1));
}

}  // namespace
}  // namespace thimble
