// Flags of the commands that measure models, and what they mean.
#include "recipes/commands/eval_flags.h"

#include <gflags/gflags.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "data/byte_source.h"
#include "data/choice_rows.h"
#include "ops/check.h"
#include "recipes/commands/flags.h"

DEFINE_string(form, "",
              "What a row holds: auto, alpaca, messages, prompt_completion or text. Empty: as the run, "
              "else auto.");
DEFINE_string(loss_on, "", "Tokens to score in rows of turns: responses or all. Empty: as the run, else responses.");
DEFINE_int64(context, 0, "Cut plain texts into windows of so many tokens. 0: whole rows.");
DEFINE_int64(batch_tokens, 2048, "Tokens evaluated at once; more take more memory.");
DEFINE_int64(max_rows, 0, "Take so many first rows. 0: all.");
DEFINE_bool(eos, false, "Score the token that ends a plain text, too.");
DEFINE_string(reference, "", "Model of the same vocabulary to compare the distributions with.");
DEFINE_string(slice_by, "",
              "Figures apart for parts of the rows: file, length (tokens of a row), or columns of the rows, such as "
              "language. Several with commas; of several files always by file.");
DEFINE_string(length_buckets, "64,256,1024,4096",
              "Most tokens of a row in each bucket of --slice_by=length but the last.");
DEFINE_string(
    task, "",
    "Multiple-choice questions as JSON lines: context, choices, and answer (index from 0, text of a choice, or "
    "letter).");
DEFINE_bool(exact_match, false, "Let the model answer each row, greedily, and count answers equal to the row's.");

namespace thimble {
namespace {

absl::Status AtLeast(const char* flag, int64_t found, int64_t least) {
  if (found >= least) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--", flag, ": found ", found, ", expected at least ", least));
}

absl::Status CheckNumbers() {
  if (FLAGS_context != 0) RETURN_IF_ERROR(AtLeast("context", FLAGS_context, 2));
  RETURN_IF_ERROR(AtLeast("batch_tokens", FLAGS_batch_tokens, 2));
  RETURN_IF_ERROR(AtLeast("max_rows", FLAGS_max_rows, 0));
  RETURN_IF_ERROR(AtLeast("max_new_tokens", FLAGS_max_new_tokens, 1));
  if (FLAGS_batch_tokens > (int64_t{1} << 24)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--batch_tokens: found ", FLAGS_batch_tokens, ", expected at most ", int64_t{1} << 24));
  }
  if (!FLAGS_loss_on.empty() && FLAGS_loss_on != "responses" && FLAGS_loss_on != "all") {
    return absl::InvalidArgumentError(
        absl::StrCat("--loss_on: found '", FLAGS_loss_on, "', expected responses or all"));
  }
  if (!FLAGS_form.empty()) RETURN_IF_ERROR(ParseRowForm(FLAGS_form).status());
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int64_t>> LengthEdges() {
  std::vector<int64_t> edges;
  for (const absl::string_view part : absl::StrSplit(FLAGS_length_buckets, ',')) {
    int64_t edge = 0;
    if (!absl::SimpleAtoi(part, &edge) || edge < 1 || (!edges.empty() && edge <= edges.back())) {
      return absl::InvalidArgumentError(absl::StrCat("--length_buckets: found '", FLAGS_length_buckets,
                                                     "', expected ascending numbers of tokens, as 64,256,1024"));
    }
    edges.push_back(edge);
  }
  return edges;
}

}  // namespace

absl::StatusOr<EvaluationOptions> EvaluationOptionsFromFlags(const ModelSession& model, const CommandLine& line) {
  EvaluationOptions options = EvaluationOptionsOf(model);
  options.data.files = line.Values("data");
  options.tasks = line.Values("task");
  options.slice_by = absl::StrSplit(FLAGS_slice_by, ',', absl::SkipEmpty());
  ASSIGN_OR_RETURN(options.length_edges, LengthEdges());
  options.data.max_rows = FLAGS_max_rows;
  if (!FLAGS_form.empty()) {
    ASSIGN_OR_RETURN(options.data.form, ParseRowForm(FLAGS_form));
  }
  if (!FLAGS_chat_format.empty()) options.chat_format = FLAGS_chat_format;
  if (!FLAGS_loss_on.empty()) options.loss_on = FLAGS_loss_on == "all" ? LossOn::kAll : LossOn::kResponses;
  options.eos = FLAGS_eos;
  options.context = FLAGS_context;
  options.batch_tokens = FLAGS_batch_tokens;
  options.exact_match = FLAGS_exact_match;
  options.max_new_tokens = FLAGS_max_new_tokens;
  return options;
}

absl::Status CheckEvaluationFlags(const CommandLine& line) {
  RETURN_IF_ERROR(CheckNumbers());
  RETURN_IF_ERROR(LengthEdges().status());
  const std::vector<std::string> files = line.Values("data"), tasks = line.Values("task");
  if (files.empty() && tasks.empty()) {
    return absl::InvalidArgumentError("give the rows to evaluate on: --data=FILE, or --task=FILE");
  }
  // A missing file or a wrong question is told before a large model is read.
  for (const std::string& file : files) RETURN_IF_ERROR(ByteSource::Open(file).status());
  for (const std::string& task : tasks) RETURN_IF_ERROR(ReadChoiceRows(task).status());
  return absl::OkStatus();
}

}  // namespace thimble
