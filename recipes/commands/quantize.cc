// thimble quantize: a model folder to the same model in 4 bits.
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "data/model_folder.h"
#include "data/quantize_folder.h"
#include "ops/check.h"
#include "recipes/commands/commands.h"
#include "recipes/commands/flags.h"
#include "recipes/commands/output_folder.h"
#include "recipes/commands/quantize_flags.h"
#include "recipes/nearest_name.h"
#include "trainer/decoder_config.h"
#include "trainer/weight_loader.h"

namespace thimble {
namespace {

using Json = nlohmann::ordered_json;

absl::StatusOr<QuantizeFolderOptions> OptionsFromFlags() {
  QuantizeFolderOptions options;
  if (FLAGS_format == "fp4") {
    options.quantize.format = Format::kFP4;
  } else if (!FLAGS_format.empty() && FLAGS_format != "nf4") {
    return absl::InvalidArgumentError(absl::StrCat("--format: found '", FLAGS_format, "', expected nf4 or fp4",
                                                   DidYouMean(FLAGS_format, {"nf4", "fp4"})));
  }
  RETURN_IF_ERROR(SetQuantizeFlags(&options.quantize));
  ASSIGN_OR_RETURN(options.max_shard_bytes, ShardBytesFromFlag());
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
  ASSIGN_OR_RETURN(const std::string out, NewFolderFromFlag());
  TensorCounts before;
  {
    ASSIGN_OR_RETURN(const std::unique_ptr<ModelFolder> source, ModelFolder::Open(in));
    RETURN_IF_ERROR(ParseDecoderConfig(source->config(), in + "/config.json").status());
    // One that is quantised already is refused below.
    if (!source->config().contains("quantization_config")) RETURN_IF_ERROR(CheckTensors(*source));
    before = CountTensors(*source);
  }
  const absl::StatusOr<TensorCounts> after = QuantizeModelFolder(in, out, options);
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
  command.summary = "Write a model with its linear layers in 4 bits.";
  command.usage = "MODEL";
  command.description =
      "Quantises the decoder's linear layers of a Hugging Face folder, bit for bit as\n"
      "bitsandbytes does, and writes a folder that transformers with bitsandbytes and\n"
      "thimble open. --format is nf4 (the default) or fp4. Embedding, norms and output\n"
      "layer stay as they are; tokenizer and generation files are carried along.\n"
      "Memory: one tensor.\n"
      "JSON: path, and before and after, each with tensors and bytes by format.";
  command.example = "  thimble quantize base --format=nf4 --out=base-nf4";
  command.min_arguments = 1;
  command.max_arguments = 1;
  command.flags = {"format", "out", "block_size", "double_quant", "max_shard_size", "json"};
  command.run = RunQuantize;
  return command;
}

}  // namespace thimble
