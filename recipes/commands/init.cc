// thimble init: a configuration to a model folder with random weights.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "ops/check.h"
#include "recipes/commands/commands.h"
#include "recipes/commands/flags.h"
#include "recipes/commands/output_folder.h"
#include "recipes/commands/quantize_flags.h"
#include "recipes/nearest_name.h"
#include "trainer/init_folder.h"

namespace thimble {
namespace {

absl::StatusOr<InitFolderOptions> OptionsFromFlags() {
  InitFolderOptions options;
  if (FLAGS_seed < 0)
    return absl::InvalidArgumentError(absl::StrCat("--seed: found ", FLAGS_seed, ", expected 0 or more"));
  options.seed = static_cast<uint64_t>(FLAGS_seed);
  ASSIGN_OR_RETURN(options.max_shard_bytes, ShardBytesFromFlag());
  if (FLAGS_format == "nf4" || FLAGS_format == "fp4") {
    options.quantize.emplace();
    options.quantize->format = FLAGS_format == "nf4" ? Format::kNF4 : Format::kFP4;
    RETURN_IF_ERROR(SetQuantizeFlags(&*options.quantize));
    return options;
  }
  if (QuantizeFlagsGiven()) {
    return absl::InvalidArgumentError(
        "--block_size and --double_quant are for 4-bit weights: give --format=nf4 or --format=fp4 as well");
  }
  if (FLAGS_format == "f16") options.dtype = TensorDType::kF16;
  if (FLAGS_format == "f32") options.dtype = TensorDType::kF32;
  if (FLAGS_format.empty() || FLAGS_format == "bf16" || FLAGS_format == "f16" || FLAGS_format == "f32") return options;
  return absl::InvalidArgumentError(absl::StrCat("--format: found '", FLAGS_format,
                                                 "', expected bf16, f16, f32, nf4 or fp4",
                                                 DidYouMean(FLAGS_format, {"bf16", "f16", "f32", "nf4", "fp4"})));
}

absl::Status RunInit(const CommandLine& line) {
  ASSIGN_OR_RETURN(const InitFolderOptions options, OptionsFromFlags());
  ASSIGN_OR_RETURN(const std::string out, NewFolderFromFlag());
  const absl::StatusOr<TensorCounts> counts = InitModelFolder(line.arguments[0], out, options);
  if (!counts.ok()) return WriteFailure(counts.status());
  if (FLAGS_json) {
    const nlohmann::ordered_json json = {{"path", out}, {"tensors", CountsJson(*counts)}};
    std::printf("%s\n", json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    return absl::OkStatus();
  }
  PrintCounts("Random weights", *counts);
  std::printf("Wrote %s\n", out.c_str());
  return absl::OkStatus();
}

}  // namespace

Command InitCommand() {
  Command command;
  command.name = "init";
  command.summary = "Write a model of random weights from a config.json.";
  command.usage = "CONFIG";
  command.description =
      "Writes a Hugging Face folder of the shape that CONFIG, a config.json or a folder\n"
      "that has one, says: to start pretraining, or to measure memory and speed at a\n"
      "shape whose weights are not at hand. Matrices are normal with deviation\n"
      "initializer_range, biases 0, norms 1; the same bits for the same --seed.\n"
      "--format is bf16 (the default), f16, f32, or nf4 or fp4: linear layers in 4 bits\n"
      "as bitsandbytes has them, the rest in bf16. Tokenizer and generation files of a\n"
      "folder are carried along. Memory: one tensor.\n"
      "JSON: path, and tensors with number and bytes by format.";
  command.example =
      "  thimble init Llama-3.1-8B/config.json --format=nf4 --out=random-8b\n"
      "  thimble plan recipes/qlora.yaml --set model.path=random-8b";
  command.min_arguments = 1;
  command.max_arguments = 1;
  command.flags = {"format", "out", "seed", "block_size", "double_quant", "max_shard_size", "json"};
  command.run = RunInit;
  return command;
}

}  // namespace thimble
