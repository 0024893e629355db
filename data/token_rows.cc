#include "data/token_rows.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "ops/check.h"

namespace thimble {

void TokenRows::Append(const EncodedRow& row) {
  begins_.push_back(begins_.back());
  first_target_.push_back(0);
  num_targets_.push_back(0);
  ExtendLast(row);
}

void TokenRows::ExtendLast(const EncodedRow& row) {
  CHECK(size() > 0 && file_ == nullptr) << "no row to extend in memory";
  CHECK_EQ(row.tokens.size(), row.is_target.size());
  // A row without targets has first_target == length, also while it grows.
  if (num_targets_.back() == 0) {
    const auto first = std::find(row.is_target.begin(), row.is_target.end(), uint8_t{1});
    first_target_.back() = length(size() - 1) + (first - row.is_target.begin());
  }
  num_targets_.back() += std::count(row.is_target.begin(), row.is_target.end(), uint8_t{1});
  begins_.back() += static_cast<int64_t>(row.tokens.size());
  tokens_.insert(tokens_.end(), row.tokens.begin(), row.tokens.end());
  is_target_.insert(is_target_.end(), row.is_target.begin(), row.is_target.end());
}

void TokenRows::AddIndexTo(Hdf5Writer* writer) const {
  writer->AddArray("begins", Hdf5Type::kI64, {size() + 1}, begins_.data());
  writer->AddArray("first_target", Hdf5Type::kI64, {size()}, first_target_.data());
  writer->AddArray("num_targets", Hdf5Type::kI64, {size()}, num_targets_.data());
}

void TokenRows::TakePayload(std::vector<int32_t>* tokens, std::vector<uint8_t>* is_target) {
  *tokens = std::exchange(tokens_, {});
  *is_target = std::exchange(is_target_, {});
}

absl::StatusOr<TokenRows> TokenRows::FromFile(Hdf5Reader file) {
  TokenRows rows;
  ASSIGN_OR_RETURN(const Hdf5Reader::Entry* const begins, file.Find("begins", Hdf5Type::kI64));
  if (begins->shape.size() != 1 || begins->shape[0] < 1) {
    return absl::DataLossError(absl::StrCat(file.path(), ": 'begins' must be a list with at least one element"));
  }
  const int64_t count = begins->shape[0] - 1;
  rows.begins_.resize(static_cast<size_t>(count + 1));
  rows.first_target_.resize(static_cast<size_t>(count));
  rows.num_targets_.resize(static_cast<size_t>(count));
  RETURN_IF_ERROR(file.Read("begins", Hdf5Type::kI64, {count + 1}, rows.begins_.data()));
  RETURN_IF_ERROR(file.Read("first_target", Hdf5Type::kI64, {count}, rows.first_target_.data()));
  RETURN_IF_ERROR(file.Read("num_targets", Hdf5Type::kI64, {count}, rows.num_targets_.data()));
  ASSIGN_OR_RETURN(const Hdf5Reader::Entry* const tokens, file.Find("tokens", Hdf5Type::kI32));
  ASSIGN_OR_RETURN(const Hdf5Reader::Entry* const is_target, file.Find("is_target", Hdf5Type::kU8));
  const std::vector<int64_t> shape = {rows.begins_.back()};
  if (rows.begins_.front() != 0 || !std::is_sorted(rows.begins_.begin(), rows.begins_.end()) ||
      tokens->shape != shape || is_target->shape != shape) {
    return absl::DataLossError(absl::StrCat(file.path(), ": 'begins', 'tokens' and 'is_target' do not fit together"));
  }
  for (int64_t row = 0; row < count; ++row) {
    const int64_t length = rows.length(row);
    if (rows.first_target_[row] < 0 || rows.first_target_[row] > length || rows.num_targets_[row] < 0 ||
        rows.num_targets_[row] > length) {
      return absl::DataLossError(
          absl::StrCat(file.path(), ": 'first_target' or 'num_targets' of row ", row, " is beyond the row"));
    }
  }
  rows.file_ = std::make_shared<const Hdf5Reader>(std::move(file));
  return rows;
}

absl::Status TokenRows::Read(int64_t row, int64_t first, int64_t count, std::vector<int32_t>* tokens,
                             std::vector<uint8_t>* is_target) const {
  CHECK(row >= 0 && row < size() && first >= 0 && count >= 0 && first + count <= length(row))
      << "row " << row << " first " << first << " count " << count;
  tokens->resize(static_cast<size_t>(count));
  is_target->resize(static_cast<size_t>(count));
  const int64_t begin = begins_[row] + first;
  if (file_ != nullptr) {
    RETURN_IF_ERROR(file_->ReadRange("tokens", Hdf5Type::kI32, begin, count, tokens->data()));
    return file_->ReadRange("is_target", Hdf5Type::kU8, begin, count, is_target->data());
  }
  std::copy_n(tokens_.begin() + begin, count, tokens->begin());
  std::copy_n(is_target_.begin() + begin, count, is_target->begin());
  return absl::OkStatus();
}

}  // namespace thimble
