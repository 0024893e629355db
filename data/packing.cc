#include "data/packing.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "ops/check.h"

namespace thimble {
namespace {

constexpr int32_t kNoTarget = -100;

// splitmix64's output function. Source: Steele, Lea, Flood 2014, doi:10.1145/2714064.2660195.
uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// Separate streams of random numbers for what is shuffled within an epoch.
uint64_t RowStream(int64_t epoch) { return 2 * static_cast<uint64_t>(epoch); }
uint64_t BinStream(int64_t epoch) { return 2 * static_cast<uint64_t>(epoch) + 1; }

int64_t Median(std::vector<int64_t> values) {
  if (values.empty()) return 0;
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

absl::Status CheckOptions(const PackingOptions& options) {
  if (options.seq_len < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("sequence length: expected at least 2 tokens, found ", options.seq_len));
  }
  if (options.micro_batch_size < 1 || options.micro_batch_size > (int64_t{1} << 31) / options.seq_len) {
    return absl::InvalidArgumentError(absl::StrCat("micro-batch size: expected 1 to ",
                                                   (int64_t{1} << 31) / options.seq_len, ", found ",
                                                   options.micro_batch_size));
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<int64_t> ShuffledOrder(int64_t count, uint64_t seed, uint64_t epoch) {
  const uint64_t key = Mix(Mix(seed) ^ epoch);
  std::vector<std::pair<uint64_t, int64_t>> keyed(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) keyed[i] = {Mix(key + static_cast<uint64_t>(i) * 0xD1342543DE82EF95u), i};
  std::sort(keyed.begin(), keyed.end());
  std::vector<int64_t> order(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) order[i] = keyed[i].second;
  return order;
}

absl::StatusOr<BatchStream> BatchStream::Make(std::shared_ptr<const TokenRows> rows, const PackingOptions& options) {
  RETURN_IF_ERROR(CheckOptions(options));
  BatchStream stream;
  stream.rows_ = std::move(rows);
  stream.options_ = options;
  RETURN_IF_ERROR(stream.SelectRows());
  stream.PlanEpoch(0);
  RETURN_IF_ERROR(stream.CountTargets());
  const auto bins = static_cast<int64_t>(stream.order_.size());
  stream.stats_.bins = bins;
  for (int64_t bin = 0; bin < bins; ++bin) {
    int64_t tokens = 0;
    for (int64_t i = stream.bin_begins_[bin]; i < stream.bin_begins_[bin + 1]; ++i) tokens += stream.pieces_[i].count;
    stream.stats_.tokens += tokens;
    stream.stats_.bin_tokens_max = std::max(stream.stats_.bin_tokens_max, tokens);
  }
  // How full bins are does not depend on the epoch: best fit looks at lengths alone.
  stream.max_batch_tokens_ = stream.stats_.bin_tokens_max * std::min(options.micro_batch_size, bins);
  return stream;
}

namespace {

// Marks held_out_share of the rows, rounded, but at least one row on either side.
std::vector<bool> HeldOutRows(int64_t rows, const PackingOptions& options) {
  std::vector<bool> held_out(rows, false);
  if (options.held_out_share <= 0 || rows < 2) return held_out;
  const auto wanted = static_cast<int64_t>(std::llround(options.held_out_share * static_cast<double>(rows)));
  const int64_t count = std::clamp<int64_t>(wanted, 1, rows - 1);
  // An epoch number that training never reaches: the choice is independent of every shuffle.
  const std::vector<int64_t> order = ShuffledOrder(rows, options.seed, ~uint64_t{0});
  for (int64_t i = 0; i < count; ++i) held_out[order[i]] = true;
  return held_out;
}

}  // namespace

absl::Status BatchStream::SelectRows() {
  const int64_t seq_len = options_.seq_len;
  const std::vector<bool> held_out = HeldOutRows(rows_->size(), options_);
  std::vector<int64_t> lengths;
  for (int64_t row = 0; row < rows_->size(); ++row) {
    if (held_out[row] != options_.held_out) continue;
    const int64_t length = rows_->length(row);
    lengths.push_back(length);
    stats_.longest_row = std::max(stats_.longest_row, length);
    const bool too_long = options_.mode != PackingMode::kWindows && length > seq_len;
    if (too_long && options_.too_long == TooLong::kFail) {
      return absl::InvalidArgumentError(
          absl::StrCat("row ", row + 1, " of the data set has ", length, " tokens; at most ", seq_len,
                       " fit. Raise the sequence length, or have too long rows cut or dropped"));
    }
    if (too_long && options_.too_long == TooLong::kDrop) {
      ++stats_.rows_dropped;
      continue;
    }
    const int64_t count = too_long ? seq_len : length;
    if (rows_->num_targets(row) == 0 || rows_->first_target(row) >= count) {
      ++stats_.rows_no_targets;
      continue;
    }
    stats_.rows_cut += too_long ? 1 : 0;
    rows_kept_.push_back({row, 0, count, false});
  }
  stats_.rows = static_cast<int64_t>(lengths.size());
  stats_.rows_kept = static_cast<int64_t>(rows_kept_.size());
  stats_.median_row = Median(std::move(lengths));
  if (!rows_kept_.empty()) return absl::OkStatus();
  if (stats_.rows == 0) return absl::InvalidArgumentError("the data set has no rows");
  return absl::InvalidArgumentError(
      absl::StrCat("the data set has no targets: of ", stats_.rows, " rows ", stats_.rows_dropped, " are longer than ",
                   seq_len, " tokens and dropped, and ", stats_.rows_no_targets,
                   " have nothing to learn (no assistant text within the first ", seq_len, " tokens)"));
}

absl::Status BatchStream::CountTargets() {
  std::vector<int32_t> tokens;
  std::vector<uint8_t> is_target;
  for (const Piece& row : rows_kept_) {
    if (row.count == rows_->length(row.row)) {
      stats_.targets += rows_->num_targets(row.row);
      continue;
    }
    RETURN_IF_ERROR(rows_->Read(row.row, 0, row.count, &tokens, &is_target));
    stats_.targets += std::count(is_target.begin(), is_target.end(), uint8_t{1});
  }
  return absl::OkStatus();
}

void BatchStream::PlanEpoch(int64_t epoch) {
  if (epoch == planned_epoch_) return;
  // Only packing draws new bins in every epoch; else their order alone changes.
  if (planned_epoch_ < 0 || (options_.mode == PackingMode::kPacked && options_.shuffle)) {
    pieces_.clear();
    bin_begins_.assign(1, 0);
    if (options_.mode == PackingMode::kPacked) {
      PackBins(epoch);
    } else if (options_.mode == PackingMode::kWindows) {
      CutWindows();
    } else {
      pieces_ = rows_kept_;
      bin_begins_.resize(pieces_.size() + 1);
      std::iota(bin_begins_.begin(), bin_begins_.end(), 0);
    }
  }
  const auto bins = static_cast<int64_t>(bin_begins_.size()) - 1;
  if (options_.shuffle) {
    order_ = ShuffledOrder(bins, options_.seed, BinStream(epoch));
  } else {
    order_.resize(static_cast<size_t>(bins));
    std::iota(order_.begin(), order_.end(), 0);
  }
  planned_epoch_ = epoch;
}

// Best fit decreasing: rows from the longest on, each into the fullest bin that still has room. Rows of one length are
// taken in the epoch's order, so that rows meet other rows in every epoch.
void BatchStream::PackBins(int64_t epoch) {
  const auto count = static_cast<int64_t>(rows_kept_.size());
  std::vector<int64_t> by_length(static_cast<size_t>(count));
  if (options_.shuffle) {
    by_length = ShuffledOrder(count, options_.seed, RowStream(epoch));
  } else {
    std::iota(by_length.begin(), by_length.end(), 0);
  }
  std::stable_sort(by_length.begin(), by_length.end(),
                   [&](int64_t a, int64_t b) { return rows_kept_[a].count > rows_kept_[b].count; });
  std::vector<std::vector<int64_t>> bins;
  std::set<std::pair<int64_t, int64_t>> room;  // (tokens left, bin)
  for (const int64_t i : by_length) {
    const int64_t length = rows_kept_[i].count;
    auto fit = room.lower_bound({length, 0});
    if (fit == room.end()) {
      fit = room.insert({options_.seq_len, static_cast<int64_t>(bins.size())}).first;
      bins.emplace_back();
    }
    const auto [left, bin] = *fit;
    bins[bin].push_back(i);
    room.erase(fit);
    room.insert({left - length, bin});
  }
  for (const std::vector<int64_t>& bin : bins) {
    for (const int64_t i : bin) pieces_.push_back(rows_kept_[i]);
    bin_begins_.push_back(static_cast<int64_t>(pieces_.size()));
  }
}

void BatchStream::CutWindows() {
  int64_t left = options_.seq_len;
  for (const Piece& row : rows_kept_) {
    for (int64_t first = 0; first < row.count;) {
      const int64_t take = std::min(left, row.count - first);
      pieces_.push_back({row.row, first, take, first + take < row.count});
      first += take;
      left -= take;
      if (left == 0) {
        bin_begins_.push_back(static_cast<int64_t>(pieces_.size()));
        left = options_.seq_len;
      }
    }
  }
  if (left < options_.seq_len) bin_begins_.push_back(static_cast<int64_t>(pieces_.size()));
}

void Batch::Reset(int64_t max_tokens) {
  for (std::vector<int32_t>* values : {&tokens, &positions, &starts, &targets}) {
    values->clear();
    values->reserve(static_cast<size_t>(max_tokens));
  }
  num_targets = 0;
  num_samples = 0;
}

absl::Status BatchStream::AppendPiece(const Piece& piece, Batch* batch) {
  std::vector<int32_t>& tokens = piece_tokens_;
  std::vector<uint8_t>& is_target = piece_targets_;
  const int64_t seen = piece.count + (piece.continues ? 1 : 0);
  RETURN_IF_ERROR(rows_->Read(piece.row, piece.first, seen, &tokens, &is_target));
  for (int64_t i = 0; i < piece.count; ++i) {
    batch->tokens.push_back(tokens[i]);
    const bool has_target = i + 1 < seen && is_target[i + 1] != 0;
    batch->targets.push_back(has_target ? tokens[i + 1] : kNoTarget);
    batch->num_targets += has_target ? 1 : 0;
  }
  return absl::OkStatus();
}

absl::Status BatchStream::AppendBin(int64_t bin, Batch* batch) {
  const bool one_sample = options_.mode == PackingMode::kWindows && !options_.separate_documents;
  auto start = static_cast<int32_t>(batch->tokens.size());
  for (int64_t i = bin_begins_[bin]; i < bin_begins_[bin + 1]; ++i) {
    if (i == bin_begins_[bin] || !one_sample) {
      start = static_cast<int32_t>(batch->tokens.size());
      ++batch->num_samples;
    }
    RETURN_IF_ERROR(AppendPiece(pieces_[i], batch));
    for (auto t = static_cast<int32_t>(batch->starts.size()); t < static_cast<int32_t>(batch->tokens.size()); ++t) {
      batch->starts.push_back(start);
      batch->positions.push_back(t - start);
    }
  }
  return absl::OkStatus();
}

int64_t BatchStream::batches_per_epoch() const {
  return (stats_.bins + options_.micro_batch_size - 1) / options_.micro_batch_size;
}

std::vector<Piece> BatchStream::PiecesAt(int64_t index) const {
  std::vector<Piece> pieces;
  const int64_t begin = index * options_.micro_batch_size;
  const int64_t end = std::min(begin + options_.micro_batch_size, stats_.bins);
  for (int64_t i = begin; i < end; ++i) {
    pieces.insert(pieces.end(), pieces_.begin() + bin_begins_[order_[i]], pieces_.begin() + bin_begins_[order_[i] + 1]);
  }
  return pieces;
}

absl::Status BatchStream::Next(Batch* batch) {
  PlanEpoch(position_.epoch);
  batch->Reset(max_batch_tokens_);
  const int64_t longest_piece = std::min(stats_.longest_row, options_.seq_len) + 1;
  piece_tokens_.reserve(static_cast<size_t>(longest_piece));
  piece_targets_.reserve(static_cast<size_t>(longest_piece));
  const int64_t begin = position_.index * options_.micro_batch_size;
  const int64_t end = std::min(begin + options_.micro_batch_size, stats_.bins);
  for (int64_t i = begin; i < end; ++i) RETURN_IF_ERROR(AppendBin(order_[i], batch));
  if (++position_.index == batches_per_epoch()) position_ = {position_.epoch + 1, 0};
  return absl::OkStatus();
}

absl::StatusOr<int64_t> BatchStream::NextStep(int64_t count, std::vector<Batch>* batches, int64_t* num_targets) {
  CHECK_GE(count, 1);
  *num_targets = 0;
  int64_t given = 0;
  const int64_t epoch = position_.epoch;
  for (; given < count && position_.epoch == epoch; ++given) {
    if (given == static_cast<int64_t>(batches->size())) batches->emplace_back();
    Batch& batch = (*batches)[given];
    RETURN_IF_ERROR(Next(&batch));
    *num_targets += batch.num_targets;
  }
  return given;
}

absl::Status BatchStream::Seek(const DataPosition& position) {
  if (position.epoch < 0 || position.index < 0 || position.index >= batches_per_epoch()) {
    return absl::OutOfRangeError(absl::StrCat("the data has no micro-batch ", position.index, " of epoch ",
                                              position.epoch, "; an epoch has ", batches_per_epoch()));
  }
  position_ = position;
  return absl::OkStatus();
}

}  // namespace thimble
