// Multiple-choice questions from JSON lines: a context, choices to go on with, and which of them is right.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "data/token_rows.h"
#include "data/tokenizer.h"

namespace thimble {

struct ModelTokens;

struct ChoiceRow {
  std::string context;
  std::vector<std::string> choices;  // two or more, none empty
  int64_t answer = 0;                // index into choices
  int64_t line = 0;                  // from 1
};

// One object a line with `context` (may be empty), `choices` and `answer`: an index from 0, the text of a choice, or a
// letter from A on. Other keys are not looked at; blank lines are skipped. The file may be .zst. Errors name file,
// line, expected and found.
absl::StatusOr<std::vector<ChoiceRow>> ReadChoiceRows(const std::string& path);

// The context and, after one blank, a choice as a row whose targets are the choice's tokens: text tokenised as a whole,
// white space at the context's end counted to the choice, BOS first where the model's texts have one, as EleutherAI's
// lm-evaluation-harness does it. A row longer than `max_tokens` loses tokens of the context's beginning, and then
// tokens of the choice's; *cut says so. InvalidArgument when nothing is before the choice: an empty context and no BOS
// or EOS.
absl::StatusOr<EncodedRow> EncodeChoice(const Tokenizer& tokenizer, const ModelTokens& tokens,
                                        const std::string& context, const std::string& choice, int64_t max_tokens,
                                        bool* cut);

// Characters (not bytes) of a text in UTF-8.
int64_t CountCharacters(const std::string& text);

}  // namespace thimble
