// thimble tokenize: a text to token ids and back.
#include <gflags/gflags.h>

#include <cstdio>
#include <iostream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "data/file.h"
#include "data/tokenizer.h"
#include "ops/check.h"
#include "recipes/commands/commands.h"
#include "recipes/commands/flags.h"

DEFINE_string(file, "", "The file to read; without it, standard input.");
DEFINE_bool(special, false, "Add, or with --decode keep, the special tokens such as BOS.");
DEFINE_bool(decode, false,
            "The file holds token ids, separated by white space or commas, or what --json printed; print their text.");

namespace thimble {
namespace {

absl::StatusOr<std::string> ReadInput() {
  if (!FLAGS_file.empty()) return ReadFile(FLAGS_file);
  return std::string(std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>());
}

// What --json printed, or a plain list.
std::string ListOfIds(const std::string& text) {
  const nlohmann::json page = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  return page.is_object() && page.contains("tokens")
             ? page["tokens"].dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
             : text;
}

// Decoding leaves out ids that do not exist; here they are an error, so that a wrong tokenizer is noticed.
absl::StatusOr<std::vector<int32_t>> ParseIds(const std::string& text, int64_t vocab_size) {
  std::vector<int32_t> ids;
  for (const auto word : absl::StrSplit(text, absl::ByAnyChar(" \t\r\n,[]"), absl::SkipEmpty())) {
    int32_t id = 0;
    if (!absl::SimpleAtoi(word, &id) || id < 0 || id >= vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat(FLAGS_file.empty() ? "standard input" : FLAGS_file, ": found '",
                                                     word.substr(0, 40), "', expected token ids from 0 to ",
                                                     vocab_size - 1));
    }
    ids.push_back(id);
  }
  return ids;
}

void PrintTokens(const Tokenizer& tokenizer, const std::string& text) {
  const std::vector<int32_t> ids = tokenizer.Encode(text, FLAGS_special);
  if (FLAGS_json) {
    std::printf("%s\n", nlohmann::json{{"tokens", ids}}.dump().c_str());
    return;
  }
  for (size_t i = 0; i < ids.size(); ++i) std::printf("%s%d", i == 0 ? "" : " ", ids[i]);
  std::printf("\n");
}

absl::Status Run(const CommandLine& line) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(line.arguments[0]));
  for (const std::string& warning : tokenizer->warnings()) std::fprintf(stderr, "note: %s\n", warning.c_str());
  ASSIGN_OR_RETURN(const std::string input, ReadInput());
  if (!FLAGS_decode) {
    if (input.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
      return absl::InvalidArgumentError(
          absl::StrCat(FLAGS_file, ": found a text of ", input.size(), " bytes, expected less than 2 GiB; split it"));
    }
    PrintTokens(*tokenizer, input);
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids, ParseIds(ListOfIds(input), tokenizer->vocab_size()));
  const std::string text = tokenizer->Decode(ids, /*skip_special_tokens=*/!FLAGS_special);
  if (FLAGS_json) {
    std::printf("%s\n", nlohmann::json{{"text", text}}.dump().c_str());
  } else {
    std::fwrite(text.data(), 1, text.size(), stdout);
  }
  return absl::OkStatus();
}

}  // namespace

Command TokenizeCommand() {
  Command command;
  command.name = "tokenize";
  command.summary = "Turn a text into token ids, or back.";
  command.usage = "MODEL|tokenizer.json";
  command.description =
      "Reads a whole file as one text and prints its token ids. With --json one\n"
      "object: tokens, or with --decode text.";
  command.example =
      "  thimble tokenize base --file=story.txt --json\n"
      "  echo 15339 1917 | thimble tokenize base/tokenizer.json --decode";
  command.min_arguments = 1;
  command.max_arguments = 1;
  command.flags = {"file", "decode", "special", "json"};
  command.run = Run;
  return command;
}

}  // namespace thimble
