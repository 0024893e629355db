#include "data/row_encoder.h"

#include <algorithm>
#include <utility>

#include "ops/check.h"

namespace thimble {
namespace {

struct Range {
  int64_t begin = 0;
  int64_t end = 0;
};

// Ranges of the pieces in the rendered text.
std::vector<Range> PieceRanges(const Rendered& rendered) {
  std::vector<Range> ranges;
  int64_t begin = 0;
  for (const RenderedPiece& piece : rendered.pieces) {
    const int64_t end = begin + static_cast<int64_t>(piece.text.size());
    ranges.push_back({begin, end});
    begin = end;
  }
  return ranges;
}

// Whether every piece that must be one token is one. A tokenizer may have normalised the marker before matching (the
// published Llama 2 files do), or let it swallow white space beside it.
bool TokensFound(const Tokenizer& tokenizer, const Rendered& rendered, const std::vector<Range>& ranges,
                 const Tokenizer::Encoding& encoding) {
  size_t t = 0;
  for (size_t p = 0; p < ranges.size(); ++p) {
    if (!rendered.pieces[p].is_token) continue;
    const std::optional<int32_t> id = tokenizer.TokenId(rendered.pieces[p].text);
    while (t < encoding.ids.size() && encoding.end[t] <= ranges[p].begin) ++t;
    if (!id.has_value() || t == encoding.ids.size() || encoding.ids[t] != *id) return false;
    if (encoding.begin[t] > ranges[p].begin || encoding.end[t] < ranges[p].end) return false;
  }
  return true;
}

// Token by token: does it hold a byte of a target piece? A token across the border counts, since the model must write
// it.
void MarkTargets(const Rendered& rendered, const std::vector<Range>& ranges, const Tokenizer::Encoding& encoding,
                 std::vector<uint8_t>* is_target) {
  size_t p = 0;
  for (size_t t = 0; t < encoding.ids.size(); ++t) {
    const int64_t begin = encoding.begin[t];
    const int64_t end = std::max(encoding.end[t], begin + 1);  // inserted text stands before byte `begin`
    while (p < ranges.size() && ranges[p].end <= begin) ++p;
    bool target = false;
    for (size_t q = p; q < ranges.size() && ranges[q].begin < end; ++q) {
      target |= rendered.pieces[q].is_target && ranges[q].end > begin;
    }
    is_target->push_back(target ? 1 : 0);
  }
}

}  // namespace

EncodedRow RowEncoder::EncodePieces(const Rendered& rendered, bool all_targets) const {
  EncodedRow row;
  const std::vector<Range> ranges = PieceRanges(rendered);
  const Tokenizer::Encoding whole = tokenizer_->EncodeWithOffsets(rendered.Text(), /*add_special_tokens=*/false);
  if (TokensFound(*tokenizer_, rendered, ranges, whole)) {
    row.tokens = whole.ids;
    MarkTargets(rendered, ranges, whole, &row.is_target);
  } else {
    // The text between the tokens is encoded piece by piece, and the tokens are put in by id.
    Rendered between;
    for (size_t p = 0; p <= rendered.pieces.size(); ++p) {
      const bool at_end = p == rendered.pieces.size();
      if (!at_end && !rendered.pieces[p].is_token) {
        between.pieces.push_back(rendered.pieces[p]);
        continue;
      }
      const Tokenizer::Encoding part = tokenizer_->EncodeWithOffsets(between.Text(), /*add_special_tokens=*/false);
      row.tokens.insert(row.tokens.end(), part.ids.begin(), part.ids.end());
      MarkTargets(between, PieceRanges(between), part, &row.is_target);
      between.pieces.clear();
      if (at_end) break;
      row.tokens.push_back(tokenizer_->TokenId(rendered.pieces[p].text).value());
      row.is_target.push_back(rendered.pieces[p].is_target ? 1 : 0);
    }
  }
  if (all_targets) row.is_target.assign(row.tokens.size(), 1);
  return row;
}

void RowEncoder::AddBos(const Rendered& rendered, EncodedRow* row) const {
  const bool wanted = (rendered.bos || tokens_.add_bos) && tokens_.bos_id >= 0;
  if (wanted && (row->tokens.empty() || row->tokens[0] != tokens_.bos_id)) {
    row->tokens.insert(row->tokens.begin(), tokens_.bos_id);
    row->is_target.insert(row->is_target.begin(), 0);
  }
  if (!row->is_target.empty()) row->is_target[0] = 0;
}

absl::StatusOr<EncodedRow> RowEncoder::Encode(const Row& row, bool continued) const {
  ASSIGN_OR_RETURN(const Rendered rendered, RenderRow(format_, tokens_, row));
  EncodedRow encoded = EncodePieces(rendered, loss_on_ == LossOn::kAll);
  if (!continued) AddBos(rendered, &encoded);
  return encoded;
}

absl::StatusOr<std::vector<int32_t>> RowEncoder::EncodePrompt(const std::vector<Message>& messages) const {
  ASSIGN_OR_RETURN(const Rendered rendered, RenderPrompt(format_, messages));
  EncodedRow encoded = EncodePieces(rendered, false);
  AddBos(rendered, &encoded);
  return std::move(encoded.tokens);
}

absl::StatusOr<std::vector<int32_t>> RowEncoder::EncodeRowPrompt(const Row& row, std::string* expected) const {
  expected->clear();
  if (row.form == RowForm::kText) {
    return absl::InvalidArgumentError("a row of form text has no prompt to generate from");
  }
  Row before = row;
  while (!before.messages.empty() && before.messages.back().role != "assistant") before.messages.pop_back();
  if (before.messages.empty()) return absl::InvalidArgumentError("the row has no assistant message");
  *expected = before.messages.back().content;
  before.messages.pop_back();
  ASSIGN_OR_RETURN(const Rendered rendered, RenderRowPrompt(format_, before));
  EncodedRow encoded = EncodePieces(rendered, false);
  AddBos(rendered, &encoded);
  return std::move(encoded.tokens);
}

std::vector<int32_t> RowEncoder::StopTokens() const {
  std::vector<int32_t> stop;
  if (!format_.end_of_turn.empty()) stop.push_back(tokenizer_->TokenId(format_.end_of_turn).value());
  if (tokens_.eos_id >= 0 && (stop.empty() || stop[0] != tokens_.eos_id)) stop.push_back(tokens_.eos_id);
  return stop;
}

}  // namespace thimble
