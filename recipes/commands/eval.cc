// thimble eval: loss, perplexity, divergence from a reference and exact answers of a model on a file.
#include <gflags/gflags.h>

#include <cstdio>
#include <memory>

#include "absl/strings/str_cat.h"
#include "data/byte_source.h"
#include "ops/check.h"
#include "recipes/commands/commands.h"
#include "recipes/commands/flags.h"
#include "recipes/evaluate.h"
#include "recipes/text_layout.h"

DEFINE_string(form, "",
              "What a row holds: auto, alpaca, messages, prompt_completion or text. Empty: as the run, "
              "else auto.");
DEFINE_string(loss_on, "", "Tokens to score in rows of turns: responses or all. Empty: as the run, else responses.");
DEFINE_int64(context, 0, "Cut plain texts into windows of so many tokens. 0: whole rows.");
DEFINE_int64(batch_tokens, 2048, "Tokens evaluated at once; more take more memory.");
DEFINE_int64(max_rows, 0, "Take so many first rows. 0: all.");
DEFINE_bool(eos, false, "Score the token that ends a plain text, too.");
DEFINE_string(reference, "", "Model of the same vocabulary to compare the distributions with.");
DEFINE_bool(exact_match, false, "Let the model answer each row, greedily, and count answers equal to the row's.");

namespace thimble {
namespace {

absl::Status AtLeast(const char* flag, int64_t found, int64_t least) {
  if (found >= least) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--", flag, ": found ", found, ", expected at least ", least));
}

absl::Status CheckFlags() {
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

absl::StatusOr<EvaluationOptions> OptionsFor(const ModelSession& model, const std::vector<std::string>& files) {
  EvaluationOptions options = EvaluationOptionsOf(model);
  options.data.files = files;
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

absl::Status RunEval(const CommandLine& line) {
  RETURN_IF_ERROR(CheckFlags());
  const std::vector<std::string> files = line.Values("data");
  if (files.empty()) return absl::InvalidArgumentError("give the rows to evaluate on: --data=FILE");
  // A missing file is told before a large model is read.
  for (const std::string& file : files) RETURN_IF_ERROR(ByteSource::Open(file).status());
  ASSIGN_OR_RETURN(const std::unique_ptr<ModelSession> model, OpenModel(line.arguments[0], FLAGS_best));
  std::unique_ptr<ModelSession> reference;
  if (!FLAGS_reference.empty()) {
    ASSIGN_OR_RETURN(reference, OpenModel(FLAGS_reference, FLAGS_best));
  }
  ASSIGN_OR_RETURN(const EvaluationOptions options, OptionsFor(*model, files));
  ASSIGN_OR_RETURN(const Evaluation evaluation, EvaluateModel(model.get(), reference.get(), options));
  std::string data;
  AppendEntry("Data:", evaluation.data_description, 6, &data);
  std::fputs(data.c_str(), stderr);
  if (!evaluation.chat_format.empty()) std::fprintf(stderr, "%s\n", evaluation.chat_format.c_str());
  if (evaluation.rows_cut > 0) {
    std::fprintf(stderr, "warning: %lld rows are longer than the model's context and were cut\n",
                 static_cast<long long>(evaluation.rows_cut));
  }
  if (FLAGS_json) {
    std::printf("%s\n", EvaluationJson(evaluation).dump().c_str());
  } else {
    std::fputs(FormatEvaluation(evaluation).c_str(), stdout);
  }
  return absl::OkStatus();
}

}  // namespace

Command EvalCommand() {
  Command command;
  command.name = "eval";
  command.summary = "Measure a model on a file: loss, perplexity, exact answers, divergence.";
  command.usage = "MODEL";
  command.description =
      "MODEL is a Hugging Face folder or a run (its latest checkpoint; with --best its\n"
      "best). Rows of messages, alpaca, prompt and completion, or plain text; each is\n"
      "seen whole and by itself, or with --context a long text in windows. In windows\n"
      "the last token of one predicts the first of the next.\n"
      "--json gives tokens (scored), loss (nats a token), perplexity, rows, rows_cut,\n"
      "rows_no_targets, tokens_total, seconds, tokens_per_second, and bits_per_byte for\n"
      "texts; with --reference reference_loss, reference_perplexity, kl_mean,\n"
      "kl_median, kl_p90, kl_p95, kl_p99, kl_p99_9, kl_max (nats,\n"
      "KL(reference || model) over all tokens) and top1_agreement; with --exact_match\n"
      "exact_match, exact_match_correct, exact_match_rows and exact_match_too_long;\n"
      "memory.planned_bytes and measured_bytes of the device tier.";
  command.example =
      "  thimble eval runs/first --data=heldout.jsonl --exact_match --best\n"
      "  thimble eval base --data=book.txt --context=512 --json\n"
      "  thimble eval base-nf4 --data=book.txt --context=512 --reference=base";
  command.min_arguments = 1;
  command.max_arguments = 1;
  command.flags = {"data", "form",      "chat_format", "loss_on",        "context", "batch_tokens", "max_rows",
                   "eos",  "reference", "exact_match", "max_new_tokens", "best",    "json"};
  command.repeated_flags = {"data"};
  command.run = RunEval;
  return command;
}

}  // namespace thimble
