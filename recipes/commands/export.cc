// thimble export: a run, or a model folder, to a Hugging Face folder or a PEFT adapter.
#include <gflags/gflags.h>

#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "ops/check.h"
#include "recipes/commands/commands.h"
#include "recipes/commands/flags.h"
#include "recipes/commands/output_folder.h"
#include "recipes/export_model.h"
#include "recipes/nearest_name.h"
#include "recipes/recipe_options.h"

DEFINE_string(dtype, "",
              "Type of the weights: bf16, f16 or f32, of GGUF files also others. Empty: the run's output.export.dtype, "
              "or bf16.");
DEFINE_double(max_kl, 0.05, "Limit of the mean KL divergence, in nats. A run's recipe may state another.");
DEFINE_double(min_agreement, 0.9, "Limit of the share of equal top tokens. A run's recipe may state another.");

namespace thimble {
namespace {

absl::Status ReadFormat(ExportRequest* request) {
  request->gguf = FLAGS_format == "gguf" || FLAGS_format == "gguf_adapter";
  if (FLAGS_format == "peft" || FLAGS_format == "gguf_adapter") {
    request->adapter = true;
    if (IsGiven("dtype")) return absl::InvalidArgumentError("--dtype: an adapter is always written in f32");
    return absl::OkStatus();
  }
  if (FLAGS_format.empty() || FLAGS_format == "safetensors" || request->gguf) return absl::OkStatus();
  request->quantize = WeightFormatNamed(FLAGS_format);
  if (request->quantize.has_value()) return absl::OkStatus();
  if (FLAGS_format == "packed") {
    request->options.packed = true;
    return absl::OkStatus();
  }
  std::vector<std::string> names = WeightFormatNames();
  const std::string formats =
      absl::StrCat("safetensors (a Hugging Face folder with whole weights), ", absl::StrJoin(names, ", "),
                   " (the same quantised), packed (a ternary model in 2 bits), gguf (the same "
                   "for llama.cpp), peft (an adapter folder) or gguf_adapter (an adapter for "
                   "llama.cpp)");
  names.insert(names.end(), {"safetensors", "packed", "gguf", "peft", "gguf_adapter"});
  return absl::InvalidArgumentError(
      absl::StrCat("--format: found '", FLAGS_format, "', expected ", formats, DidYouMean(FLAGS_format, names)));
}

absl::Status ReadGgufType(ExportRequest* request) {
  if (FLAGS_dtype.empty()) return absl::OkStatus();
  request->gguf_mix = FindGgufMix(FLAGS_dtype);
  if (request->gguf_mix != nullptr) return absl::OkStatus();
  const std::vector<std::string> names = GgufMixNames();
  return absl::InvalidArgumentError(absl::StrCat("--dtype: found '", FLAGS_dtype, "', expected one of ",
                                                 absl::StrJoin(names, ", "), DidYouMean(FLAGS_dtype, names)));
}

absl::Status ReadDType(ExportOptions* options) {
  if (FLAGS_dtype.empty()) return absl::OkStatus();
  if (FLAGS_dtype == "bf16") {
    options->dtype = TensorDType::kBF16;
  } else if (FLAGS_dtype == "f16") {
    options->dtype = TensorDType::kF16;
  } else if (FLAGS_dtype == "f32") {
    options->dtype = TensorDType::kF32;
  } else {
    return absl::InvalidArgumentError(absl::StrCat("--dtype: found '", FLAGS_dtype, "', expected bf16, f16 or f32",
                                                   DidYouMean(FLAGS_dtype, {"bf16", "f16", "f32"})));
  }
  return absl::OkStatus();
}

absl::StatusOr<ExportRequest> RequestFromFlags(const CommandLine& line) {
  ExportRequest request;
  RETURN_IF_ERROR(ReadFormat(&request));
  RETURN_IF_ERROR(request.gguf ? ReadGgufType(&request) : ReadDType(&request.options));
  ASSIGN_OR_RETURN(request.options.max_shard_bytes, ShardBytesFromFlag());
  ASSIGN_OR_RETURN(request.out, NewFolderFromFlag());
  request.data = line.Values("data");
  request.options.max_kl = FLAGS_max_kl;
  request.options.min_agreement = FLAGS_min_agreement;
  return request;
}

// What no flag says, the run's recipe does.
void TakeFromRecipe(const recipe::Recipe& recipe, ExportOptions* options) {
  const ExportOptions from = ExportOptionsOf(recipe);
  if (FLAGS_dtype.empty()) options->dtype = from.dtype;
  if (!IsGiven("max_shard_size")) options->max_shard_bytes = from.max_shard_bytes;
  if (!IsGiven("max_kl")) options->max_kl = from.max_kl;
  if (!IsGiven("min_agreement")) options->min_agreement = from.min_agreement;
}

absl::Status RunExport(const CommandLine& line) {
  const std::string& path = line.arguments[0];
  ASSIGN_OR_RETURN(ExportRequest request, RequestFromFlags(line));
  const bool is_run = IsRunFolder(path);
  if (!is_run && request.adapter) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": --format=", FLAGS_format, " needs a run that trained an adapter"));
  }
  if (!is_run && FLAGS_best) return absl::InvalidArgumentError(absl::StrCat(path, ": --best needs a run"));
  ASSIGN_OR_RETURN(const std::unique_ptr<ModelSession> model, OpenModel(path, FLAGS_best));
  if (is_run) TakeFromRecipe(model->recipe, &request.options);
  const absl::StatusOr<ExportReport> report = ExportModel(model.get(), request);
  if (!report.ok()) return WriteFailure(report.status());
  if (FLAGS_json) {
    std::printf("%s\n", ExportReportJson(*report, request.options).dump(2).c_str());
  } else {
    std::printf("%s", FormatExportReport(*report, request.options).c_str());
  }
  return report->verdict;
}

}  // namespace

Command ExportCommand() {
  Command command;
  command.name = "export";
  command.summary = "Write a run's model, or a model folder, for other programs.";
  command.usage = "RUN|MODEL";
  command.description =
      "--format=safetensors (the default): a Hugging Face folder with whole weights, a\n"
      "run's adapter merged into its base as it was trained, 4 bits included; of a\n"
      "model folder: the same model in another dtype, in other shards, or decoded from\n"
      "4 bits.\n"
      "--format=nf4, fp4, int8, int4, int4_g32, int4_g64, int4_g128, fp8_e4m3,\n"
      "fp8_e5m2 or nvfp4: the same, then quantised as thimble quantize does it.\n"
      "--format=packed: a ternary (BitNet) model with its layers in 2 bits a weight, as\n"
      "transformers reads it.\n"
      "--format=gguf: model.gguf for llama.cpp; its --dtype may also be q8_0, q4_0,\n"
      "q4_1, q5_0, q5_1, q4_k_s, q4_k_m, q5_k_s, q5_k_m, q6_k, tq1_0, tq2_0, mxfp4 or\n"
      "nvfp4; of a ternary model tq2_0, tq1_0, q8_0, bf16, f16 or f32.\n"
      "--format=peft, --format=gguf_adapter: a run's adapter.\n"
      "What is written is read back and compared with the model over the recipe's\n"
      "held-out rows or --data, behind every step; the figures go\n"
      "into the folder as quality.json and as a model card, README.md. Above a\n"
      "limit, exit code 1 and the step that lost it; whatever fails leaves nothing\n"
      "behind. JSON: path, format, dtype, base, tensors, bytes, merged_layers,\n"
      "decoded_layers, decoded_format, memory.{planned_bytes,measured_bytes},\n"
      "accepted, quality.{mean_kl,max_kl,agreement,tokens,rows,targets,limits,\n"
      "trained.{loss,perplexity},steps} with step, format, loss, perplexity, kl_mean,\n"
      "kl_max and top1_agreement of each step.";
  command.example =
      "  thimble export runs/first --format=safetensors --out=merged\n"
      "  thimble export runs/first --format=peft --out=adapter --best\n"
      "  thimble export runs/first --format=gguf --dtype=q4_k_m --out=first";
  command.min_arguments = 1;
  command.max_arguments = 1;
  command.flags = {"format", "out", "dtype", "max_shard_size", "best", "data", "max_kl", "min_agreement", "json"};
  command.repeated_flags = {"data"};
  command.run = RunExport;
  return command;
}

}  // namespace thimble
