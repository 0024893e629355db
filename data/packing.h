// Rows into micro-batches: best-fit-decreasing packing, one row after another, or windows over a long text; shuffled
// by (seed, epoch) alone, so that any position can be returned to.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "data/token_rows.h"

namespace thimble {

enum class PackingMode : uint8_t {
  kPacked,    // bins of at most seq_len tokens by best fit decreasing; a micro-batch is micro_batch_size bins
  kUnpacked,  // a micro-batch is micro_batch_size rows
  kWindows,   // rows joined in order and cut every seq_len tokens (pretraining); a micro-batch is micro_batch_size
              // windows
};
enum class TooLong : uint8_t { kDrop, kCut, kFail };  // rows longer than seq_len; no meaning for kWindows

struct PackingOptions {
  PackingMode mode = PackingMode::kPacked;
  TooLong too_long = TooLong::kCut;
  int64_t seq_len = 1024;
  int64_t micro_batch_size = 1;
  bool shuffle = true;  // false: file order, epoch after epoch (evaluation)
  uint64_t seed = 0;
  bool separate_documents = true;  // kWindows: a document does not see the one before it
  // A share of the rows, chosen by (seed, number of rows), is set apart: left out, or with `held_out` alone taken.
  double held_out_share = 0;
  bool held_out = false;
};

// A run of one row's tokens. Its last token predicts the row's next token when `continues` (windows only), else
// nothing.
struct Piece {
  int64_t row = 0;
  int64_t first = 0;
  int64_t count = 0;
  bool continues = false;
};

struct PackingStats {
  int64_t rows = 0;  // read
  int64_t rows_kept = 0;
  int64_t rows_cut = 0;         // kept in part
  int64_t rows_dropped = 0;     // too long, with TooLong::kDrop
  int64_t rows_no_targets = 0;  // left out: nothing to learn (after cutting)
  int64_t tokens = 0;           // of one epoch
  int64_t targets = 0;
  int64_t bins = 0;                         // bins, rows or windows of one epoch
  int64_t bin_tokens_max = 0;               // of the fullest
  int64_t longest_row = 0, median_row = 0;  // before cutting
};

// A micro-batch: tokens of all its samples, one after another; no padding. See the field comments.
struct Batch {
  std::vector<int32_t> tokens;
  std::vector<int32_t> positions;  // index within the sample
  std::vector<int32_t> starts;     // index in this batch of the sample's first token
  std::vector<int32_t> targets;    // the token to predict, -100 for none
  int64_t num_targets = 0;
  int64_t num_samples = 0;

  // Empties it; its memory stays, enough for so many tokens.
  void Reset(int64_t max_tokens);
};

// Where a stream stands: the next micro-batch is number `index` of epoch `epoch`.
struct DataPosition {
  int64_t epoch = 0;
  int64_t index = 0;
};

class BatchStream {
 public:
  // Rows left out are counted; no rows left, or no targets at all, is InvalidArgument, as is a row that is too long
  // with TooLong::kFail (naming it) or a seq_len below 2.
  static absl::StatusOr<BatchStream> Make(std::shared_ptr<const TokenRows> rows, const PackingOptions& options);

  // The micro-batch at position(), which moves on; epochs follow one another without end. A batch that is given again
  // keeps its memory.
  absl::Status Next(Batch* batch);
  // One optimiser step's worth: the next `count` micro-batches, fewer at the end of an epoch, and all their targets.
  // Returns their number; `batches` grows to it where it is shorter, and what lies behind keeps its memory.
  absl::StatusOr<int64_t> NextStep(int64_t count, std::vector<Batch>* batches, int64_t* num_targets);
  const DataPosition& position() const { return position_; }
  // OutOfRange when the index does not exist.
  absl::Status Seek(const DataPosition& position);

  // What the micro-batch of this index in the epoch that Next() was last asked for is made of, in the order of its
  // tokens.
  std::vector<Piece> PiecesAt(int64_t index) const;

  // The same in every epoch.
  int64_t batches_per_epoch() const;
  // No batch has more tokens.
  int64_t max_batch_tokens() const { return max_batch_tokens_; }
  const PackingStats& stats() const { return stats_; }
  const PackingOptions& options() const { return options_; }
  int64_t steps_per_epoch(int64_t micro_batches) const {
    return (batches_per_epoch() + micro_batches - 1) / micro_batches;
  }

 private:
  BatchStream() = default;
  absl::Status SelectRows();
  absl::Status CountTargets();
  void PlanEpoch(int64_t epoch);
  void PackBins(int64_t epoch);
  void CutWindows();
  absl::Status AppendBin(int64_t bin, Batch* batch);
  absl::Status AppendPiece(const Piece& piece, Batch* batch);

  std::shared_ptr<const TokenRows> rows_;
  PackingOptions options_;
  PackingStats stats_;
  DataPosition position_;
  int64_t planned_epoch_ = -1;
  int64_t max_batch_tokens_ = 0;
  std::vector<Piece> rows_kept_;     // kPacked: in file order
  std::vector<Piece> pieces_;        // of planned_epoch_, bin after bin
  std::vector<int64_t> bin_begins_;  // bin b is pieces_[bin_begins_[b] .. bin_begins_[b + 1])
  std::vector<int64_t> order_;       // bins as they are given out in planned_epoch_
  std::vector<int32_t> piece_tokens_;
  std::vector<uint8_t> piece_targets_;
};

// 0 .. count-1 in an order that depends on (seed, epoch, count) alone.
std::vector<int64_t> ShuffledOrder(int64_t count, uint64_t seed, uint64_t epoch);

}  // namespace thimble
