// Chat formats: how rows become text, and which characters of it the model learns to write.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "data/dataset.h"
#include "data/model_tokens.h"

namespace thimble {

enum class ChatFormatKind : uint8_t { kChatml, kLlama3, kMistral, kZephyr, kAlpaca, kPlain };
const char* ChatFormatName(ChatFormatKind kind);

// One format with the switches in which models differ. Formats: templates published with the models.
struct ChatFormat {
  ChatFormatKind kind = ChatFormatKind::kPlain;
  std::string default_system;        // chatml, alpaca: written when a row has no system text; empty: none
  bool reasoning = false;            // chatml as Qwen 3: empty <think> block in the last answer, none in earlier ones
  bool tool_tags = false;            // chatml as Qwen: <tool_call> and <tool_response> tags
  bool date_block = false;           // llama3 as Llama 3.1 and later: knowledge and today's date in the system turn
  std::string date = "26 Jul 2024";  // of that block; fixed, so that a run can be repeated
  bool space_after_eos = false;      // mistral v0.1: "</s> "
  bool space_before_answer = false;  // mistral v0.3: "[/INST] answer"
  bool prints_bos = false;           // the template itself writes BOS
  std::string end_of_turn;           // one token of the vocabulary, e.g. <|im_end|>; empty: the model has none (plain)
  std::string description;           // for the log: name, how it was found, default system
  // All that shapes the rendering, for cache keys.
  std::string Fingerprint() const;
};

// `name`: auto, chatml, llama3, mistral, zephyr, alpaca or plain. auto recognises tokens.chat_template; when that is
// none of these, or there is none, InvalidArgument asks for a name and lists them. A named format takes its switches
// from the model's template where that is of the same kind. A format whose end-of-turn token the tokenizer lacks is
// InvalidArgument.
absl::StatusOr<ChatFormat> MakeChatFormat(const std::string& name, const ModelTokens& tokens,
                                          const Tokenizer& tokenizer);
// The same without the check of the vocabulary, from a template's text alone.
absl::StatusOr<ChatFormat> RecogniseChatTemplate(const std::string& chat_template, const ModelTokens& tokens);

struct RenderedPiece {
  std::string text;
  bool is_target = false;  // assistant text or its end-of-turn token
  bool is_token = false;   // the text is one token of the vocabulary (end of turn, EOS)
};
struct Rendered {
  std::vector<RenderedPiece> pieces;
  bool bos = false;          // BOS comes first (never among the pieces)
  int64_t last_answer = -1;  // the piece that the last answer begins with; -1: no assistant turn
  std::string Text() const;
  // What stands before the last answer, which there must be. Nothing is a target.
  Rendered Prompt() const;
};

// Whole rows; EOS ends plain rows and texts where the model has one. InvalidArgument when the format cannot express
// the row (a role it has no place for, no user turn); the caller adds file and line.
absl::StatusOr<Rendered> RenderRow(const ChatFormat& format, const ModelTokens& tokens, const Row& row);
// The conversation so far and the opening of the assistant's turn, for generation: exactly what a row with these
// messages and one more answer has before that answer. `row.form` decides what it decides for rows (RowForm::kText: a
// text to go on with); alpaca's input is kept.
absl::StatusOr<Rendered> RenderPrompt(const ChatFormat& format, Row row);

}  // namespace thimble
