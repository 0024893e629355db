// Slices of rows: by file, by length, by a column.
#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "ops/check.h"
#include "recipes/evaluation_parts.h"

namespace thimble {
namespace {

constexpr size_t kMostSlices = 1000;

Slicing ByFile(const EvaluationOptions& options, const RowOrigins& origins) {
  return {"file", options.data.files, origins.file};
}

// Tokens of the whole row: "1-64", "65-256", ..., "4097-".
Slicing ByLength(const std::vector<int64_t>& edges, const TokenRows& rows) {
  Slicing slicing{"length", {}, {}};
  int64_t first = 1;
  for (const int64_t edge : edges) {
    slicing.names.push_back(absl::StrCat(first, "-", edge));
    first = edge + 1;
  }
  slicing.names.push_back(absl::StrCat(first, "-"));
  for (int64_t r = 0; r < rows.size(); ++r) {
    const auto edge = std::lower_bound(edges.begin(), edges.end(), rows.length(r));
    slicing.slice.push_back(static_cast<int32_t>(edge - edges.begin()));
  }
  return slicing;
}

absl::StatusOr<Slicing> ByColumn(const std::string& column, const std::vector<std::string>& labels) {
  std::map<std::string, int32_t> slices;
  for (const std::string& label : labels) slices[label] = 0;
  if (slices.size() == 1 && slices.begin()->first.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--slice_by: no row has a column '", column, "'; expected file, length or a column of the rows"));
  }
  if (slices.size() > kMostSlices) {
    return absl::InvalidArgumentError(absl::StrCat("--slice_by: column '", column, "' has ", slices.size(),
                                                   " values, expected at most ", kMostSlices));
  }
  Slicing slicing{column, {}, {}};
  for (auto& [label, index] : slices) {
    index = static_cast<int32_t>(slicing.names.size());
    slicing.names.push_back(label.empty() ? "(none)" : label);
  }
  for (const std::string& label : labels) slicing.slice.push_back(slices[label]);
  return slicing;
}

bool IsBuiltIn(const std::string& name) { return name == "file" || name == "length"; }

}  // namespace

std::vector<std::string> LabelColumns(const std::vector<std::string>& slice_by) {
  std::vector<std::string> columns;
  for (const std::string& name : slice_by) {
    if (!IsBuiltIn(name)) columns.push_back(name);
  }
  return columns;
}

absl::StatusOr<std::vector<Slicing>> MakeSlicings(const EvaluationOptions& options, const RowOrigins& origins,
                                                  const TokenRows& rows) {
  CHECK_EQ(static_cast<int64_t>(origins.file.size()), rows.size());
  std::vector<Slicing> slicings;
  const bool asked = std::find(options.slice_by.begin(), options.slice_by.end(), "file") != options.slice_by.end();
  if (options.data.files.size() > 1 && !asked) slicings.push_back(ByFile(options, origins));
  size_t column = 0;
  for (const std::string& name : options.slice_by) {
    if (name == "file") {
      slicings.push_back(ByFile(options, origins));
    } else if (name == "length") {
      slicings.push_back(ByLength(options.length_edges, rows));
    } else {
      ASSIGN_OR_RETURN(Slicing slicing, ByColumn(name, origins.labels[column++]));
      slicings.push_back(std::move(slicing));
    }
  }
  return slicings;
}

SliceSums::SliceSums(const std::vector<Slicing>* slicings) : slicings_(slicings) {
  for (const Slicing& slicing : *slicings) sums_.emplace_back(slicing.names.size());
}

void SliceSums::Add(const std::vector<Piece>& pieces, const Batch& batch, const std::vector<float>& losses,
                    const std::vector<float>& reference_losses, const Divergence* divergence) {
  compared_ = divergence != nullptr;
  for (size_t s = 0; s < sums_.size(); ++s) {
    int64_t t = 0;
    for (const Piece& piece : pieces) {
      Sums& sums = sums_[s][(*slicings_)[s].slice[piece.row]];
      sums.rows += piece.first == 0 ? 1 : 0;
      sums.tokens += piece.count;
      for (const int64_t end = t + piece.count; t < end; ++t) {
        sums.targets += batch.targets[t] >= 0 ? 1 : 0;
        sums.loss += losses[t];
        if (divergence == nullptr) continue;
        sums.reference_loss += reference_losses[t];
        sums.kl.push_back(divergence->kl(t));
        sums.agreed += divergence->agrees(t) ? 1 : 0;
      }
    }
  }
}

std::vector<SliceFigures> SliceSums::Take() {
  std::vector<SliceFigures> figures;
  for (size_t s = 0; s < sums_.size(); ++s) {
    for (size_t i = 0; i < sums_[s].size(); ++i) {
      Sums& sums = sums_[s][i];
      if (sums.tokens == 0) continue;
      SliceFigures slice;
      slice.by = (*slicings_)[s].by;
      slice.name = (*slicings_)[s].names[i];
      slice.rows = sums.rows;
      slice.tokens = sums.tokens;
      slice.targets = sums.targets;
      const auto targets = static_cast<double>(std::max<int64_t>(sums.targets, 1));
      slice.loss = sums.loss / targets;
      slice.compared = compared_;
      if (compared_) {
        slice.divergence.reference_loss = sums.reference_loss / targets;
        FinishDivergence(std::move(sums.kl), sums.agreed, &slice.divergence);
      }
      figures.push_back(std::move(slice));
    }
  }
  return figures;
}

void FinishDivergence(std::vector<float> kl, int64_t agreed, DivergenceFigures* figures) {
  double sum = 0;
  for (const float value : kl) sum += value;
  const auto count = static_cast<double>(std::max<size_t>(kl.size(), 1));
  figures->mean_kl = sum / count;
  figures->top1_agreement = static_cast<double>(agreed) / count;
  std::sort(kl.begin(), kl.end());
  figures->kl = std::move(kl);
}

}  // namespace thimble
