// Rows to token ids and target masks: rendered once, tokenised once, masked by character offsets. Where an answer
// begins within a token, the text is taken apart there, so that a prompt's tokens are always those that its row begins
// with.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "data/chat_format.h"
#include "data/token_rows.h"
#include "data/tokenizer.h"

namespace thimble {

// Which tokens carry loss.
enum class LossOn : uint8_t { kResponses, kAll };

// Holds pointers to tokenizer; const calls are safe from several threads.
class RowEncoder {
 public:
  RowEncoder(const Tokenizer* tokenizer, ModelTokens tokens, ChatFormat format, LossOn loss_on)
      : tokenizer_(tokenizer), tokens_(std::move(tokens)), format_(std::move(format)), loss_on_(loss_on) {}

  // `continued`: the row before this one was a part of the same document, so no BOS. Text rows and, with kAll,
  // everything but BOS are targets.
  absl::StatusOr<EncodedRow> Encode(const Row& row, bool continued = false) const;
  // For generation: the conversation and the opening of the answer, token by token what a row of `form` with these
  // messages begins with. The form matters to chat format plain alone (kText: a text to go on with).
  absl::StatusOr<std::vector<int32_t>> EncodePrompt(const std::vector<Message>& messages, RowForm form) const;
  // The part of a row before its last answer, for evaluation by generation; `expected` receives that answer as the
  // format writes it (Qwen 3: with its empty reasoning).
  absl::StatusOr<std::vector<int32_t>> EncodeRowPrompt(const Row& row, std::string* expected) const;
  // Generation stops at these: end of turn and EOS.
  std::vector<int32_t> StopTokens() const;

  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const ModelTokens& tokens() const { return tokens_; }
  const ChatFormat& format() const { return format_; }
  LossOn loss_on() const { return loss_on_; }

 private:
  EncodedRow EncodePieces(const Rendered& rendered, bool all_targets) const;
  void AppendPieces(absl::Span<const RenderedPiece> pieces, EncodedRow* row) const;
  std::vector<int32_t> PromptTokens(const Rendered& prompt) const;
  void AddBos(const Rendered& rendered, EncodedRow* row) const;

  const Tokenizer* tokenizer_;
  ModelTokens tokens_;
  ChatFormat format_;
  LossOn loss_on_;
};

}  // namespace thimble
