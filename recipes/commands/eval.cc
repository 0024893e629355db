// thimble eval: loss, perplexity, divergence from a reference, exact answers and choices of a model on files.
#include <cstdio>
#include <memory>

#include "ops/check.h"
#include "recipes/commands/commands.h"
#include "recipes/commands/eval_flags.h"
#include "recipes/commands/flags.h"
#include "recipes/evaluate.h"
#include "recipes/text_layout.h"

namespace thimble {
namespace {

absl::Status RunEval(const CommandLine& line) {
  RETURN_IF_ERROR(CheckEvaluationFlags(line));
  const bool rows = !line.Values("data").empty();
  if (!rows && !FLAGS_reference.empty()) {
    return absl::InvalidArgumentError("--reference compares distributions over rows: give some with --data=FILE");
  }
  if (!rows && (!FLAGS_slice_by.empty() || FLAGS_exact_match)) {
    return absl::InvalidArgumentError("--slice_by and --exact_match are of rows: give some with --data=FILE");
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<ModelSession> model, OpenModel(line.arguments[0], FLAGS_best));
  std::unique_ptr<ModelSession> reference;
  if (!FLAGS_reference.empty()) {
    ASSIGN_OR_RETURN(reference, OpenModel(FLAGS_reference, FLAGS_best));
  }
  ASSIGN_OR_RETURN(const EvaluationOptions options, EvaluationOptionsFromFlags(*model, line));
  ASSIGN_OR_RETURN(const Evaluation evaluation, EvaluateModel(model.get(), reference.get(), options));
  std::string data;
  if (evaluation.scored) AppendEntry("Data:", evaluation.data_description, 6, &data);
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
  command.summary = "Measure a model on files: loss, perplexity, divergence, choices, answers.";
  command.usage = "MODEL";
  command.description =
      "MODEL is a Hugging Face folder or a run (its latest checkpoint; with --best its\n"
      "best). Rows of messages, alpaca, prompt and completion, or plain text; each is\n"
      "seen whole and by itself, or with --context a long text in windows. In windows\n"
      "the last token of one predicts the first of the next.\n"
      "--task=FILE (also more than once) counts right choices: acc by the likelihood\n"
      "of a choice after its context and one blank, acc_norm by that likelihood for\n"
      "each character of it, as lm-evaluation-harness does.\n"
      "--json gives tokens (scored), loss (nats a token), perplexity, rows, rows_cut,\n"
      "rows_no_targets, tokens_total, seconds, tokens_per_second (of the model alone),\n"
      "and bits_per_byte for texts; with --reference reference_loss,\n"
      "reference_perplexity, kl_mean, kl_median, kl_p90, kl_p95, kl_p99, kl_p99_9,\n"
      "kl_max (nats, KL(reference || model) over all tokens) and top1_agreement;\n"
      "slices (by, name, rows, tokens, tokens_total, loss, perplexity, and with\n"
      "--reference the same figures); with --exact_match exact_match,\n"
      "exact_match_correct, exact_match_rows and exact_match_too_long; tasks (file,\n"
      "questions, acc, acc_stderr, acc_norm, acc_norm_stderr, cut, seconds);\n"
      "memory.planned_bytes and measured_bytes of the device tier.";
  command.example =
      "  thimble eval runs/first --data=heldout.jsonl --exact_match --best\n"
      "  thimble eval base --data=book.txt --context=512 --json\n"
      "  thimble eval base-nf4 --data=book.txt --context=512 --reference=base\n"
      "  thimble eval base-nf4 --data=all.jsonl --slice-by=language --task=arc.jsonl";
  command.min_arguments = 1;
  command.max_arguments = 1;
  command.flags = {"data", "form",      "chat_format", "loss_on",        "context", "batch_tokens", "max_rows",
                   "eos",  "reference", "slice_by",    "length_buckets", "task",    "exact_match",  "max_new_tokens",
                   "best", "json"};
  command.repeated_flags = {"data", "task"};
  command.run = RunEval;
  return command;
}

}  // namespace thimble
