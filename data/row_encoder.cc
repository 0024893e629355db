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

using Pieces = absl::Span<const RenderedPiece>;

std::string TextOf(Pieces pieces) {
  std::string text;
  for (const RenderedPiece& piece : pieces) text += piece.text;
  return text;
}

// Ranges of the pieces in the rendered text.
std::vector<Range> PieceRanges(Pieces pieces) {
  std::vector<Range> ranges;
  int64_t begin = 0;
  for (const RenderedPiece& piece : pieces) {
    const int64_t end = begin + static_cast<int64_t>(piece.text.size());
    ranges.push_back({begin, end});
    begin = end;
  }
  return ranges;
}

// The pieces that must be one token and are not. A tokenizer may have normalised the marker before matching (the
// published Llama 2 files do), or let it swallow white space beside it.
std::vector<size_t> MissingTokens(const Tokenizer& tokenizer, Pieces pieces, const std::vector<Range>& ranges,
                                  const Tokenizer::Encoding& encoding) {
  std::vector<size_t> missing;
  size_t t = 0;
  for (size_t p = 0; p < ranges.size(); ++p) {
    if (!pieces[p].is_token) continue;
    const std::optional<int32_t> id = tokenizer.TokenId(pieces[p].text);
    while (t < encoding.ids.size() && encoding.end[t] <= ranges[p].begin) ++t;
    const bool found = id.has_value() && t < encoding.ids.size() && encoding.ids[t] == *id &&
                       encoding.begin[t] <= ranges[p].begin && encoding.end[t] >= ranges[p].end;
    if (!found) missing.push_back(p);
  }
  return missing;
}

constexpr std::string_view kSpace = " \t\r\n";

// Whether text[begin, border), encoded on its own, has the tokens that it has in `encoding` from `first` on.
bool StandsAlone(const Tokenizer& tokenizer, std::string_view text, int64_t begin, int64_t border,
                 const Tokenizer::Encoding& encoding, size_t first) {
  const std::vector<int32_t> alone = tokenizer.Encode(text.substr(begin, border - begin), false);
  const size_t end = std::lower_bound(encoding.end.begin(), encoding.end.end(), border + 1) - encoding.end.begin();
  return std::equal(alone.begin(), alone.end(), encoding.ids.begin() + static_cast<int64_t>(first),
                    encoding.ids.begin() + static_cast<int64_t>(end));
}

// The first answer whose prompt, encoded on its own, has other tokens than it has here, 0 when there is none: a token
// reaches over the border, or white space before it was split by what follows.
size_t AnswerToCutAt(const Tokenizer& tokenizer, Pieces pieces, std::string_view text, const std::vector<Range>& ranges,
                     const Tokenizer::Encoding& encoding) {
  for (size_t p = 1; p < pieces.size(); ++p) {
    if (!pieces[p].is_target || pieces[p - 1].is_target || pieces[p].is_token) continue;
    const int64_t border = ranges[p].begin;
    if (border == 0) continue;
    const size_t next = std::upper_bound(encoding.end.begin(), encoding.end.end(), border) - encoding.end.begin();
    if (next < encoding.ids.size() && encoding.begin[next] < border) return p;
    const size_t word = text.substr(0, border).find_last_not_of(kSpace) + 1;  // where the white space begins
    const bool one_line_end = text[border - 1] == '\n' && static_cast<int64_t>(word) + 1 == border;
    if (static_cast<int64_t>(word) == border || one_line_end) continue;
    // From the last token that holds more than white space; where that one is a part of a word, from the beginning.
    const size_t first =
        word == 0 ? 0
                  : std::upper_bound(encoding.end.begin(), encoding.end.end(), static_cast<int64_t>(word) - 1) -
                        encoding.end.begin();
    const bool known = first < encoding.ids.size();
    if (known && StandsAlone(tokenizer, text, encoding.begin[first], border, encoding, first)) continue;
    if (!StandsAlone(tokenizer, text, 0, border, encoding, 0)) return p;
  }
  return 0;
}

// Token by token: does it hold a byte of a target piece?
void MarkTargets(Pieces pieces, const std::vector<Range>& ranges, const Tokenizer::Encoding& encoding,
                 std::vector<uint8_t>* is_target) {
  size_t p = 0;
  for (size_t t = 0; t < encoding.ids.size(); ++t) {
    const int64_t begin = encoding.begin[t];
    const int64_t end = std::max(encoding.end[t], begin + 1);  // inserted text stands before byte `begin`
    while (p < ranges.size() && ranges[p].end <= begin) ++p;
    bool target = false;
    for (size_t q = p; q < ranges.size() && ranges[q].begin < end; ++q) {
      target |= pieces[q].is_target && ranges[q].end > begin;
    }
    is_target->push_back(target ? 1 : 0);
  }
}

}  // namespace

void RowEncoder::AppendPieces(absl::Span<const RenderedPiece> pieces, EncodedRow* row) const {
  if (pieces.empty()) return;
  const std::vector<Range> ranges = PieceRanges(pieces);
  const std::string text = TextOf(pieces);
  const Tokenizer::Encoding whole = tokenizer_->EncodeWithOffsets(text, /*add_special_tokens=*/false);
  if (const size_t cut = AnswerToCutAt(*tokenizer_, pieces, text, ranges, whole); cut > 0) {
    AppendPieces(pieces.first(cut), row);
    AppendPieces(pieces.subspan(cut), row);
    return;
  }
  const std::vector<size_t> missing = MissingTokens(*tokenizer_, pieces, ranges, whole);
  if (missing.empty()) {
    row->tokens.insert(row->tokens.end(), whole.ids.begin(), whole.ids.end());
    MarkTargets(pieces, ranges, whole, &row->is_target);
    return;
  }
  // They are put in by id, and what stands between them is encoded piece by piece.
  size_t begin = 0;
  for (const size_t p : missing) {
    AppendPieces(pieces.subspan(begin, p - begin), row);
    row->tokens.push_back(tokenizer_->TokenId(pieces[p].text).value());
    row->is_target.push_back(pieces[p].is_target ? 1 : 0);
    begin = p + 1;
  }
  AppendPieces(pieces.subspan(begin), row);
}

EncodedRow RowEncoder::EncodePieces(const Rendered& rendered, bool all_targets) const {
  EncodedRow row;
  AppendPieces(rendered.pieces, &row);
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

std::vector<int32_t> RowEncoder::PromptTokens(const Rendered& prompt) const {
  EncodedRow encoded = EncodePieces(prompt, false);
  AddBos(prompt, &encoded);
  return std::move(encoded.tokens);
}

absl::StatusOr<std::vector<int32_t>> RowEncoder::EncodePrompt(const std::vector<Message>& messages,
                                                              RowForm form) const {
  Row row;
  row.form = form;
  row.messages = messages;
  ASSIGN_OR_RETURN(const Rendered prompt, RenderPrompt(format_, std::move(row)));
  return PromptTokens(prompt);
}

absl::StatusOr<std::vector<int32_t>> RowEncoder::EncodeRowPrompt(const Row& row, std::string* expected) const {
  expected->clear();
  if (row.form == RowForm::kText) {
    return absl::InvalidArgumentError("a row of form text has no prompt to generate from");
  }
  ASSIGN_OR_RETURN(const Rendered rendered, RenderRow(format_, tokens_, row));
  if (rendered.last_answer < 0) return absl::InvalidArgumentError("the row has no assistant message");
  *expected = rendered.pieces[rendered.last_answer].text;
  return PromptTokens(rendered.Prompt());
}

std::vector<int32_t> RowEncoder::StopTokens() const {
  std::vector<int32_t> stop;
  if (!format_.end_of_turn.empty()) stop.push_back(tokenizer_->TokenId(format_.end_of_turn).value());
  if (tokens_.eos_id >= 0 && (stop.empty() || stop[0] != tokens_.eos_id)) stop.push_back(tokens_.eos_id);
  return stop;
}

}  // namespace thimble
