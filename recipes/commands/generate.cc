// thimble generate: answers a prompt, greedily or sampled, as text that comes token by token or as JSON.
#include <gflags/gflags.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "data/chat_format.h"
#include "data/file.h"
#include "data/row_encoder.h"
#include "ops/check.h"
#include "recipes/commands/commands.h"
#include "recipes/commands/flags.h"
#include "recipes/forward_memory.h"
#include "recipes/recipe_options.h"
#include "recipes/session.h"
#include "trainer/generator.h"
#include "trainer/run_plan.h"

DECLARE_string(file);
DEFINE_string(prompt, "", "The prompt; without it and --file, standard input.");
DEFINE_string(system, "", "System text before it.");
DEFINE_bool(raw, false, "The prompt is plain text to go on with, not a question of a user.");
DEFINE_double(temperature, 0,
              "0: always the likeliest token; else tokens are drawn, the more evenly the higher it is.");
DEFINE_int64(top_k, 0, "Draw among so many likeliest tokens. 0: all.");
DEFINE_double(top_p, 1, "Draw among the likeliest tokens that together have this probability.");

namespace thimble {
namespace {

absl::Status CheckFlags() {
  if (!FLAGS_prompt.empty() && !FLAGS_file.empty())
    return absl::InvalidArgumentError("give --prompt or --file, not both");
  if (!std::isfinite(FLAGS_temperature) || FLAGS_temperature < 0) {
    return absl::InvalidArgumentError(absl::StrCat("--temperature: found ", FLAGS_temperature, ", expected 0 or more"));
  }
  if (!(FLAGS_top_p > 0 && FLAGS_top_p <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat("--top_p: found ", FLAGS_top_p, ", expected above 0, at most 1"));
  }
  if (FLAGS_top_k < 0)
    return absl::InvalidArgumentError(absl::StrCat("--top_k: found ", FLAGS_top_k, ", expected 0 or more"));
  if (FLAGS_seed < 0)
    return absl::InvalidArgumentError(absl::StrCat("--seed: found ", FLAGS_seed, ", expected 0 or more"));
  if (FLAGS_max_new_tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("--max_new_tokens: found ", FLAGS_max_new_tokens, ", expected at least 1"));
  }
  if (FLAGS_temperature == 0 && (FLAGS_top_k != 0 || FLAGS_top_p != 1)) {
    return absl::InvalidArgumentError("--top_k and --top_p say what is drawn from: give a --temperature above 0, too");
  }
  if (FLAGS_raw && (!FLAGS_system.empty() || !FLAGS_chat_format.empty())) {
    return absl::InvalidArgumentError("--raw takes the prompt as it is: give no --system and no --chat_format");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadPrompt() {
  if (!FLAGS_prompt.empty()) return FLAGS_prompt;
  std::string text;
  if (!FLAGS_file.empty()) {
    ASSIGN_OR_RETURN(text, ReadFile(FLAGS_file));
  } else {
    text.assign(std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>());
  }
  if (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

struct EncodedPrompt {
  std::vector<int32_t> ids;
  std::vector<int32_t> stop_tokens;
};

EncodedPrompt EncodeRaw(const ModelSession& model, const std::string& prompt) {
  EncodedPrompt encoded;
  encoded.ids = model.tokenizer->Encode(prompt, /*add_special_tokens=*/false);
  const int32_t bos = model.tokens.bos_id;
  if (model.tokens.add_bos && bos >= 0 && (encoded.ids.empty() || encoded.ids[0] != bos)) {
    encoded.ids.insert(encoded.ids.begin(), bos);
  }
  encoded.stop_tokens = model.decoder.config.eos_token_ids;
  if (model.tokens.eos_id >= 0) encoded.stop_tokens.push_back(model.tokens.eos_id);
  return encoded;
}

absl::StatusOr<EncodedPrompt> EncodeChat(const ModelSession& model, const std::string& name,
                                         const std::string& prompt) {
  ASSIGN_OR_RETURN(ChatFormat format, MakeChatFormat(name, model.tokens, *model.tokenizer));
  if (model.recipe.data().has_system()) format.default_system = model.recipe.data().system();
  std::fprintf(stderr, "%s\n", format.description.c_str());
  const RowEncoder encoder(model.tokenizer.get(), model.tokens, std::move(format), LossOn::kResponses);
  std::vector<Message> messages;
  if (!FLAGS_system.empty()) messages.push_back({"system", FLAGS_system});
  messages.push_back({"user", prompt});
  EncodedPrompt encoded;
  ASSIGN_OR_RETURN(encoded.ids, encoder.EncodePrompt(messages, model.prompt_form));
  encoded.stop_tokens = encoder.StopTokens();
  for (int32_t id : model.decoder.config.eos_token_ids) encoded.stop_tokens.push_back(id);
  return encoded;
}

absl::StatusOr<EncodedPrompt> Encode(const ModelSession& model, const std::string& prompt) {
  const std::string name = FLAGS_chat_format.empty() ? ChatFormatNameOf(model.recipe) : FLAGS_chat_format;
  if (FLAGS_raw) return EncodeRaw(model, prompt);
  if (FLAGS_chat_format.empty() && name == "auto" && model.tokens.chat_template.empty()) {
    if (!FLAGS_system.empty()) {
      return absl::InvalidArgumentError("--system: the model has no chat template; give --chat_format, too");
    }
    std::fprintf(stderr, "note: the model has no chat template, so the prompt is plain text to go on with\n");
    return EncodeRaw(model, prompt);
  }
  return EncodeChat(model, name, prompt);
}

absl::StatusOr<int64_t> ContextFor(const ModelSession& model, const EncodedPrompt& prompt) {
  const int64_t tokens = static_cast<int64_t>(prompt.ids.size());
  const int64_t limit = model.decoder.config.max_position;
  if (tokens == 0) return absl::InvalidArgumentError("the prompt is empty");
  if (tokens >= limit) {
    return absl::InvalidArgumentError(
        absl::StrCat("the prompt has ", tokens, " tokens, and the model's context is ", limit, "; give a shorter one"));
  }
  if (FLAGS_max_new_tokens > limit - tokens) {
    std::fprintf(stderr, "note: the model's context ends after %lld new tokens\n",
                 static_cast<long long>(limit - tokens));
    return limit;
  }
  return tokens + FLAGS_max_new_tokens;
}

void Write(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

absl::Status RunGenerate(const CommandLine& line) {
  RETURN_IF_ERROR(CheckFlags());
  ASSIGN_OR_RETURN(const std::string text, ReadPrompt());
  ASSIGN_OR_RETURN(const std::unique_ptr<ModelSession> model, OpenModel(line.arguments[0], FLAGS_best));
  ASSIGN_OR_RETURN(const EncodedPrompt prompt, Encode(*model, text));
  ASSIGN_OR_RETURN(const int64_t context, ContextFor(*model, prompt));
  const int64_t prompt_tokens = static_cast<int64_t>(prompt.ids.size());
  GenerateOptions options;
  options.max_new_tokens = std::min(FLAGS_max_new_tokens, context - prompt_tokens);
  options.temperature = FLAGS_temperature;
  options.top_k = FLAGS_top_k;
  options.top_p = FLAGS_top_p;
  options.seed = static_cast<uint64_t>(FLAGS_seed);
  options.stop_tokens = prompt.stop_tokens;
  Generator generator(&model->decoder, &model->store, context);
  StreamDecoder decoder(*model->tokenizer, /*skip_special_tokens=*/true);
  const auto start = std::chrono::steady_clock::now();
  const Generated answer = generator.Generate(prompt.ids, options, [&decoder](int32_t token) {
    if (!FLAGS_json) Write(decoder.Push(token));
  });
  RETURN_IF_ERROR(generator.status());
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  ForwardMemory memory;
  memory.Add(model->store);
  memory.Add(model->decoder, &model->store, generator);
  if (FLAGS_json) {
    const nlohmann::ordered_json json = {
        {"tokens", answer.tokens},
        {"logprobs", answer.logprobs},
        {"text", model->tokenizer->Decode(answer.tokens, true)},
        {"prompt_tokens", prompt_tokens},
        {"stopped", answer.stopped},
        {"memory", {{"planned_bytes", memory.planned}, {"measured_bytes", memory.measured}}}};
    std::printf("%s\n", json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  } else {
    Write(decoder.Finish() + "\n");
  }
  std::fprintf(stderr, "%lld tokens after a prompt of %lld, %.1f tokens/s\nDevice memory: planned %s, measured %s\n",
               static_cast<long long>(answer.tokens.size()), static_cast<long long>(prompt_tokens),
               static_cast<double>(answer.tokens.size() + prompt.ids.size()) / std::max(seconds, 1e-9),
               MiBText(memory.planned).c_str(), MiBText(memory.measured).c_str());
  return absl::OkStatus();
}

}  // namespace

Command GenerateCommand() {
  Command command;
  command.name = "generate";
  command.summary = "Let a model answer a prompt.";
  command.usage = "MODEL";
  command.description =
      "MODEL is a Hugging Face folder or a run (its latest checkpoint; with --best its\n"
      "best). The prompt is a user's turn in the model's chat format, written as in the\n"
      "rows that a run learned from; for a model without one, and with --raw, a text to\n"
      "go on with. One newline at its end is taken away where it comes from a file or\n"
      "standard input. The text appears as it comes.\n"
      "--json gives tokens, logprobs (of each token at temperature 1, nats), text,\n"
      "prompt_tokens, stopped (the model ended by itself), and memory.planned_bytes and\n"
      "measured_bytes of the device tier.";
  command.example =
      "  thimble generate runs/first --best --prompt=\"Where does the story happen?\"\n"
      "  thimble generate base --raw --prompt=\"Once upon a time\" \\\n"
      "      --temperature=0.8 --seed=7";
  command.min_arguments = 1;
  command.max_arguments = 1;
  command.flags = {"prompt",      "file",  "system", "raw",  "chat_format", "max_new_tokens",
                   "temperature", "top_k", "top_p",  "seed", "best",        "json"};
  command.run = RunGenerate;
  return command;
}

}  // namespace thimble
