// thimble quantize: a model folder to the same model in 4 or 8 bits.
#include <gflags/gflags.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "data/byte_source.h"
#include "data/model_folder.h"
#include "data/quantize_folder.h"
#include "ops/check.h"
#include "recipes/commands/commands.h"
#include "recipes/commands/flags.h"
#include "recipes/commands/output_folder.h"
#include "recipes/commands/quantize_flags.h"
#include "recipes/nearest_name.h"
#include "recipes/quantize_calibrated.h"
#include "recipes/recipe_options.h"
#include "trainer/decoder_config.h"
#include "trainer/weight_loader.h"

DEFINE_string(method, "nearest", "nearest, or gptq: codes that make up for each other's errors on calibration rows.");
DEFINE_string(calibration, "", "Of gptq: a file of rows as for training, or of text. Several times: more of them.");
DEFINE_int64(calibration_tokens, 32768, "Of gptq: tokens of the rows, at most.");
DEFINE_double(damping, 0.01, "Of gptq: added to the Hessian's diagonal, as a share of its mean.");
DEFINE_bool(act_order, true, "Of gptq: columns with the largest inputs first.");

namespace thimble {
namespace {

using Json = nlohmann::ordered_json;

absl::StatusOr<QuantizeFolderOptions> OptionsFromFlags() {
  QuantizeFolderOptions options;
  const std::optional<Quantize4BitOptions> how = WeightFormatNamed(FLAGS_format.empty() ? "nf4" : FLAGS_format);
  if (!how.has_value()) {
    const std::vector<std::string> names = WeightFormatNames();
    return absl::InvalidArgumentError(absl::StrCat("--format: found '", FLAGS_format, "', expected one of ",
                                                   absl::StrJoin(names, ", "), DidYouMean(FLAGS_format, names)));
  }
  options.quantize = *how;
  if (Is4Bit(how->format)) {
    RETURN_IF_ERROR(SetQuantizeFlags(&options.quantize));
  } else if (QuantizeFlagsGiven()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--block_size and --double_quant are for nf4 and fp4; ", FLAGS_format, " names its groups"));
  }
  ASSIGN_OR_RETURN(options.max_shard_bytes, ShardBytesFromFlag());
  return options;
}

absl::StatusOr<CalibrationOptions> CalibrationFromFlags(const CommandLine& line) {
  CalibrationOptions options;
  options.files = line.Values("calibration");
  const bool gptq = FLAGS_method == "gptq";
  if (!gptq && FLAGS_method != "nearest") {
    return absl::InvalidArgumentError(absl::StrCat("--method: found '", FLAGS_method, "', expected nearest or gptq",
                                                   DidYouMean(FLAGS_method, {"nearest", "gptq"})));
  }
  for (const char* flag : {"calibration", "calibration_tokens", "damping", "act_order", "chat_format"}) {
    if (!gptq && (IsGiven(flag) || !line.Values(flag).empty())) {
      return absl::InvalidArgumentError(absl::StrCat("--", flag, " is for --method=gptq"));
    }
  }
  if (!gptq) return options;
  if (options.files.empty()) {
    return absl::InvalidArgumentError("--method=gptq needs rows to calibrate on: --calibration=FILE");
  }
  // A missing file is told before a large model is read.
  for (const std::string& file : options.files) RETURN_IF_ERROR(ByteSource::Open(file).status());
  if (FLAGS_calibration_tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("--calibration_tokens: found ", FLAGS_calibration_tokens, ", expected at least 1"));
  }
  if (!(FLAGS_damping >= 0 && FLAGS_damping <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat("--damping: found ", FLAGS_damping, ", expected 0 to 1"));
  }
  if (!FLAGS_chat_format.empty()) options.chat_format = FLAGS_chat_format;
  options.tokens = FLAGS_calibration_tokens;
  options.gptq = {FLAGS_damping, FLAGS_act_order};
  return options;
}

int64_t TotalBytes(const TensorCounts& counts) {
  int64_t bytes = 0;
  for (const auto& [format, count] : counts) bytes += count.bytes;
  return bytes;
}

absl::Status RunQuantize(const CommandLine& line) {
  const std::string& in = line.arguments[0];
  ASSIGN_OR_RETURN(const QuantizeFolderOptions options, OptionsFromFlags());
  ASSIGN_OR_RETURN(const CalibrationOptions calibration, CalibrationFromFlags(line));
  ASSIGN_OR_RETURN(const std::string out, NewFolderFromFlag());
  TensorCounts before;
  {
    ASSIGN_OR_RETURN(const std::unique_ptr<ModelFolder> source, ModelFolder::Open(in));
    RETURN_IF_ERROR(ParseDecoderConfig(source->config(), in + "/config.json").status());
    // One that is quantised already is refused below.
    if (!source->config().contains("quantization_config")) {
      RETURN_IF_ERROR(CheckTensors(*source));
    } else if (FLAGS_method == "gptq") {
      return absl::InvalidArgumentError(
          absl::StrCat(in, "/config.json: has a quantization_config: the model is quantised already"));
    }
    before = CountTensors(*source);
  }
  const absl::StatusOr<TensorCounts> after = FLAGS_method == "gptq"
                                                 ? QuantizeModelCalibrated(in, out, options, calibration)
                                                 : QuantizeModelFolder(in, out, options);
  if (!after.ok()) return WriteFailure(after.status());
  if (FLAGS_json) {
    const Json json = {{"path", out}, {"before", CountsJson(before)}, {"after", CountsJson(*after)}};
    std::printf("%s\n", json.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
    return absl::OkStatus();
  }
  PrintCounts("Before", before);
  PrintCounts("After", *after);
  std::printf("Wrote %s: %.1f%% of the bytes\n", out.c_str(),
              100.0 * static_cast<double>(TotalBytes(*after)) / static_cast<double>(TotalBytes(before)));
  return absl::OkStatus();
}

}  // namespace

Command QuantizeCommand() {
  Command command;
  command.name = "quantize";
  command.summary = "Write a model with its linear layers in 4 or 8 bits.";
  command.usage = "MODEL";
  command.description =
      "Quantises the decoder's linear layers of a Hugging Face folder and writes a\n"
      "folder that thimble and others open. --format:\n"
      "  nf4 (the default), fp4        bit for bit as bitsandbytes, for it\n"
      "  int8, int4, fp8_e4m3          one scale a row, as torchao rounds; a folder of\n"
      "  int4_g32, int4_g64, int4_g128 compressed-tensors. g32: a scale for 32 weights\n"
      "  fp8_e5m2                      the same with E5M2, which others may not read\n"
      "  nvfp4                         groups of 16 and a scale of the tensor; a folder\n"
      "                                as ModelOpt writes it\n"
      "Embedding, norms and output layer stay as they are; tokenizer and generation\n"
      "files are carried along. Memory: one tensor.\n"
      "--method=gptq chooses the codes with --calibration rows, layer by layer, each\n"
      "with the inputs that the quantised layers before it give; scales stay those of\n"
      "rounding to nearest. Memory: the model, and one layer's Hessians.\n"
      "JSON: path, and before and after, each with tensors and bytes by format.";
  command.example =
      "  thimble quantize base --format=nf4 --out=base-nf4\n"
      "  thimble quantize base --format=int4 --method=gptq \\\n"
      "      --calibration=train.jsonl --out=base-int4";
  command.min_arguments = 1;
  command.max_arguments = 1;
  command.flags = {"format",    "out",         "block_size",         "double_quant",
                   "method",    "calibration", "calibration_tokens", "damping",
                   "act_order", "chat_format", "max_shard_size",     "json"};
  command.repeated_flags = {"calibration"};
  command.run = RunQuantize;
  return command;
}

}  // namespace thimble
