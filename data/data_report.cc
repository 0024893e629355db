#include "data/data_report.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "ops/check.h"

namespace thimble {
namespace {

double Share(int64_t part, int64_t whole) {
  return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
}

// A row's tokens as runs that are all targets or all none.
std::string MarkRow(const Tokenizer& tokenizer, const std::vector<int32_t>& tokens,
                    const std::vector<uint8_t>& is_target, MarkStyle style) {
  const char* open = style == MarkStyle::kAnsi ? "\x1b[32m" : "[[";
  const char* close = style == MarkStyle::kAnsi ? "\x1b[0m" : "]]";
  std::string text;
  for (size_t begin = 0; begin < tokens.size();) {
    size_t end = begin;
    while (end < tokens.size() && is_target[end] == is_target[begin]) ++end;
    const std::string run =
        tokenizer.Decode(absl::MakeConstSpan(tokens).subspan(begin, end - begin), /*skip_special_tokens=*/false);
    if (is_target[begin] != 0) {
      absl::StrAppend(&text, open, run, close);
    } else {
      text += run;
    }
    begin = end;
  }
  return text;
}

}  // namespace

DataReport MakeDataReport(const TokenisedDataset& dataset, const BatchStream& stream, const RowEncoder& encoder) {
  DataReport report;
  report.stats = stream.stats();
  report.batches = stream.batches_per_epoch();
  report.target_share = Share(report.stats.targets, report.stats.tokens);
  const int64_t room = report.stats.bins * stream.options().seq_len;
  report.packing_efficiency = Share(report.stats.tokens, room);
  report.form = dataset.description;
  report.chat_format = encoder.format().description;
  return report;
}

std::string FormatDataReport(const DataReport& report) {
  const PackingStats& stats = report.stats;
  std::string text;
  const auto line = [&](const char* name, int64_t value, const std::string& note) {
    absl::StrAppendFormat(&text, "  %-22s %12d%s%s\n", name, value, note.empty() ? "" : "  ", note);
  };
  line("rows read", stats.rows, "");
  line("rows kept", stats.rows_kept, "");
  line("  of them cut", stats.rows_cut, "");
  line("rows dropped", stats.rows_dropped, "too long");
  line("rows without targets", stats.rows_no_targets, "left out");
  line("tokens", stats.tokens, "an epoch");
  line("targets", stats.targets, absl::StrFormat("%.1f%% of the tokens", 100 * report.target_share));
  line("longest row", stats.longest_row, "tokens, before cutting");
  line("median row", stats.median_row, "tokens");
  line("bins", stats.bins, absl::StrFormat("%.1f%% full", 100 * report.packing_efficiency));
  line("micro-batches", report.batches, "an epoch");
  return text;
}

std::string DataReportJson(const DataReport& report) {
  const PackingStats& stats = report.stats;
  const nlohmann::ordered_json json = {{"rows", stats.rows},
                                       {"rows_kept", stats.rows_kept},
                                       {"rows_cut", stats.rows_cut},
                                       {"rows_dropped", stats.rows_dropped},
                                       {"rows_no_targets", stats.rows_no_targets},
                                       {"tokens", stats.tokens},
                                       {"targets", stats.targets},
                                       {"target_share", report.target_share},
                                       {"longest_row", stats.longest_row},
                                       {"median_row", stats.median_row},
                                       {"bins", stats.bins},
                                       {"packing_efficiency", report.packing_efficiency},
                                       {"batches", report.batches},
                                       {"form", report.form},
                                       {"chat_format", report.chat_format}};
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

absl::StatusOr<std::string> RenderRows(const TokenRows& rows, const Tokenizer& tokenizer, int64_t count,
                                       int64_t max_tokens, MarkStyle style) {
  std::string text;
  for (int64_t row = 0; row < std::min(count, rows.size()); ++row) {
    const int64_t shown = std::min(rows.length(row), max_tokens);
    std::vector<int32_t> tokens;
    std::vector<uint8_t> is_target;
    RETURN_IF_ERROR(rows.Read(row, 0, shown, &tokens, &is_target));
    absl::StrAppendFormat(&text, "--- row %d: %d tokens, %d targets\n", row + 1, rows.length(row),
                          rows.num_targets(row));
    absl::StrAppend(&text, MarkRow(tokenizer, tokens, is_target, style), "\n");
    if (shown < rows.length(row)) absl::StrAppendFormat(&text, "(%d more tokens)\n", rows.length(row) - shown);
  }
  return text;
}

}  // namespace thimble
