// What `thimble data` shows: counts of rows and tokens, and the first rows with their targets marked.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "data/packing.h"
#include "data/token_cache.h"

namespace thimble {

struct DataReport {
  PackingStats stats;
  int64_t batches = 0;            // micro-batches of one epoch
  double target_share = 0;        // targets / tokens
  double packing_efficiency = 0;  // tokens / (bins * seq_len)
  std::string form, chat_format;  // descriptions
};

DataReport MakeDataReport(const TokenisedDataset& dataset, const BatchStream& stream, const RowEncoder& encoder);
// A short table, one line a figure, without the descriptions.
std::string FormatDataReport(const DataReport& report);
// One JSON object with the names of the fields.
std::string DataReportJson(const DataReport& report);

enum class MarkStyle : uint8_t { kBrackets, kAnsi };
// The first `count` rows as text. Targets are green with kAnsi, else within double square brackets [[...]].
// `max_tokens` of each row are shown; what is left out is said.
absl::StatusOr<std::string> RenderRows(const TokenRows& rows, const Tokenizer& tokenizer, int64_t count,
                                       int64_t max_tokens, MarkStyle style);

}  // namespace thimble
