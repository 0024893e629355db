// Rows to evaluate on: read, tokenised, packed, and the slices that they belong to.
#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "data/chat_format.h"
#include "ops/check.h"
#include "recipes/evaluation_parts.h"

namespace thimble {
namespace {

absl::StatusOr<std::unique_ptr<RowEncoder>> EncoderFor(const ModelSession& model, const EvaluationOptions& options,
                                                       bool text) {
  ModelTokens tokens = model.tokens;
  if (text && !options.eos) {
    tokens.eos_token.clear();
    tokens.eos_id = -1;
  }
  ASSIGN_OR_RETURN(ChatFormat format, MakeChatFormat(text ? "plain" : options.chat_format, tokens, *model.tokenizer));
  if (model.recipe.data().has_system()) format.default_system = model.recipe.data().system();
  return std::make_unique<RowEncoder>(model.tokenizer.get(), std::move(tokens), std::move(format), options.loss_on);
}

absl::StatusOr<RowOrigins> ReadOrigins(DatasetReader* reader, size_t columns, int64_t* text_bytes) {
  RowOrigins origins;
  origins.labels.resize(columns);
  Row row;
  bool continued = false;
  while (true) {
    ASSIGN_OR_RETURN(const bool more, reader->Next(&row));
    if (!more) return origins;
    *text_bytes += static_cast<int64_t>(row.text.size());
    if (!continued) {
      origins.file.push_back(row.file);
      for (size_t c = 0; c < columns; ++c) origins.labels[c].push_back(std::move(row.labels[c]));
    }
    continued = row.continues;
  }
}

}  // namespace

absl::StatusOr<EvaluationRows> ReadEvaluationRows(const ModelSession& model, const EvaluationOptions& options) {
  EvaluationRows rows;
  DatasetOptions data = options.data;
  data.label_columns = LabelColumns(options.slice_by);
  ASSIGN_OR_RETURN(const std::unique_ptr<DatasetReader> reader, DatasetReader::Open(data));
  rows.form = reader->form();
  const bool text = rows.form == RowForm::kText;
  if (!text && options.context > 0) {
    return absl::InvalidArgumentError(absl::StrCat("--context cuts plain texts, and ", options.data.files[0],
                                                   " holds rows of form ", RowFormName(rows.form)));
  }
  if (text && options.exact_match) {
    return absl::InvalidArgumentError(absl::StrCat("--exact_match needs rows with questions and answers, and ",
                                                   options.data.files[0], " holds plain text"));
  }
  ASSIGN_OR_RETURN(rows.encoder, EncoderFor(model, options, text));
  ASSIGN_OR_RETURN(rows.data, TokeniseDataset(options.data, *rows.encoder, model.tokenizer_file, ""));
  const bool sliced = !options.slice_by.empty() || data.files.size() > 1;
  if (!text && !sliced) return rows;
  ASSIGN_OR_RETURN(const RowOrigins origins, ReadOrigins(reader.get(), data.label_columns.size(), &rows.text_bytes));
  ASSIGN_OR_RETURN(rows.slicings, MakeSlicings(options, origins, *rows.data.rows));
  return rows;
}

absl::StatusOr<BatchStream> PackEvaluationRows(const EvaluationRows& rows, const EvaluationOptions& options,
                                               int64_t max_position) {
  PackingOptions packing;
  packing.shuffle = false;
  int64_t longest = 0;
  for (int64_t i = 0; i < rows.data.rows->size(); ++i) longest = std::max(longest, rows.data.rows->length(i));
  if (options.context > 0) {
    if (options.context > max_position) {
      return absl::InvalidArgumentError(
          absl::StrCat("--context=", options.context, ": the model's context is ", max_position, " tokens"));
    }
    packing.mode = PackingMode::kWindows;
    packing.seq_len = options.context;
    packing.micro_batch_size = std::max<int64_t>(1, options.batch_tokens / options.context);
  } else if (longest <= max_position) {
    packing.seq_len = std::max({longest, options.batch_tokens, int64_t{2}});
  } else if (rows.form == RowForm::kText) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.data.files[0], ": found a text of ", longest, " tokens, the model's context is ",
                     max_position, "; cut it into windows with --context=", std::min<int64_t>(max_position, 1024)));
  } else {
    packing.too_long = TooLong::kCut;
    packing.seq_len = max_position;
  }
  absl::StatusOr<BatchStream> stream = BatchStream::Make(rows.data.rows, packing);
  if (!stream.ok()) {
    return absl::Status(stream.status().code(),
                        absl::StrCat(options.data.files[0], ": ", std::string(stream.status().message())));
  }
  return stream;
}

}  // namespace thimble
