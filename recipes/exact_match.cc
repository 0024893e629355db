// Greedy answers against the expected ones.
#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ops/check.h"
#include "recipes/evaluation_parts.h"
#include "recipes/work_progress.h"
#include "trainer/generator.h"

namespace thimble {
namespace {

struct Question {
  std::vector<int32_t> prompt;
  std::string answer;         // without white space at both ends
  int64_t answer_tokens = 0;  // about
};

absl::StatusOr<std::vector<Question>> ReadQuestions(const RowEncoder& encoder, const DatasetOptions& data) {
  std::vector<Question> questions;
  ASSIGN_OR_RETURN(const std::unique_ptr<DatasetReader> reader, DatasetReader::Open(data));
  Row row;
  while (true) {
    ASSIGN_OR_RETURN(const bool more, reader->Next(&row));
    if (!more) return questions;
    Question question;
    std::string answer;
    absl::StatusOr<std::vector<int32_t>> prompt = encoder.EncodeRowPrompt(row, &answer);
    if (!prompt.ok()) {
      return absl::Status(prompt.status().code(), absl::StrCat(data.files[row.file], ":", row.line, ": ",
                                                               std::string(prompt.status().message())));
    }
    question.prompt = *std::move(prompt);
    question.answer = std::string(absl::StripAsciiWhitespace(answer));
    question.answer_tokens = static_cast<int64_t>(encoder.tokenizer().Encode(answer, false).size());
    questions.push_back(std::move(question));
  }
}

}  // namespace

absl::Status MatchAnswers(ModelSession* model, const RowEncoder& encoder, const EvaluationOptions& options,
                          Evaluation* evaluation) {
  ASSIGN_OR_RETURN(const std::vector<Question> questions, ReadQuestions(encoder, options.data));
  GenerateOptions generate;
  generate.stop_tokens = encoder.StopTokens();
  if (generate.stop_tokens.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(model->path, ": --exact_match needs a token that ends an answer, and the tokenizer names no EOS"));
  }
  const int64_t limit = model->decoder.config.max_position;
  // What has run this far past the expected answer's length cannot be that answer any more.
  constexpr int64_t kMargin = 16;
  int64_t context = 0;
  for (const Question& q : questions) {
    const int64_t tokens = static_cast<int64_t>(q.prompt.size());
    if (tokens < limit)
      context = std::max(context, tokens + std::min(options.max_new_tokens, q.answer_tokens + kMargin));
  }
  evaluation->matched = true;
  evaluation->match_rows = static_cast<int64_t>(questions.size());
  std::unique_ptr<Generator> generator;
  if (context > 0) generator = std::make_unique<Generator>(&model->decoder, &model->store, std::min(context, limit));
  WorkProgress progress;
  int64_t done = 0;
  for (const Question& q : questions) {
    ++done;
    if (static_cast<int64_t>(q.prompt.size()) >= limit) {
      ++evaluation->match_too_long;
      continue;
    }
    generate.max_new_tokens = std::min(options.max_new_tokens, q.answer_tokens + kMargin);
    const Generated answer = generator->Generate(q.prompt, generate, nullptr);
    RETURN_IF_ERROR(generator->status());
    const std::string text = encoder.tokenizer().Decode(answer.tokens, /*skip_special_tokens=*/true);
    const bool correct = answer.stopped && absl::StripAsciiWhitespace(text) == q.answer;
    evaluation->match_correct += correct ? 1 : 0;
    progress.Show(
        absl::StrFormat("answered %d of %d rows, %d correct", done, evaluation->match_rows, evaluation->match_correct));
  }
  ForwardMemory memory;
  memory.Add(model->store);
  if (generator != nullptr) memory.Add(model->decoder, &model->store, *generator);
  evaluation->memory.Max(memory);
  return absl::OkStatus();
}

}  // namespace thimble
