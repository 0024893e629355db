// The walk over the arguments, with gflags as the registry and parser of flag values.
#include "recipes/command_line.h"

#include <gflags/gflags.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "ops/check.h"
#include "recipes/nearest_name.h"
#include "recipes/schema.h"
#include "recipes/text_layout.h"

namespace thimble {
namespace {

bool Contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

gflags::CommandLineFlagInfo FlagInfo(const std::string& name) {
  gflags::CommandLineFlagInfo info;
  CHECK(gflags::GetCommandLineFlagInfo(name.c_str(), &info)) << "flag " << name << " is not defined";
  return info;
}

std::string ExpectedValue(const gflags::CommandLineFlagInfo& info) {
  if (info.type == "bool") return "true or false";
  if (info.type == "double") return "a number";
  return info.type == "string" ? "a text" : "a whole number";
}

// "--seed=N" for help.
std::string FlagUsage(const gflags::CommandLineFlagInfo& info) {
  if (info.type == "bool") return "--" + info.name;
  return absl::StrCat("--", info.name, "=", info.type == "double" ? "X" : info.type == "string" ? "TEXT" : "N");
}

absl::Status WrongUse(const Command& command, const std::string& message) {
  return absl::InvalidArgumentError(WithPointer(message, absl::StrCat("thimble ", command.name, " --help")));
}

// One flag at words[*i]; moves *i on when the value is the next word.
absl::Status ReadFlag(const Command& command, const std::vector<std::string>& words, size_t* i, CommandLine* line) {
  const std::string& word = words[*i];
  const size_t equals = word.find('=');
  std::string name = word.substr(0, equals);
  name.erase(0, name.find_first_not_of('-'));
  std::replace(name.begin(), name.end(), '-', '_');
  bool has_value = equals != std::string::npos;
  std::string value = has_value ? word.substr(equals + 1) : "";
  if (!Contains(command.flags, name) && absl::StartsWith(name, "no") && Contains(command.flags, name.substr(2)) &&
      FlagInfo(name.substr(2)).type == "bool" && !has_value) {
    name = name.substr(2);
    value = "false";
    has_value = true;
  }
  if (!Contains(command.flags, name)) {
    const std::string nearest = NearestName(name, command.flags);
    return WrongUse(command, absl::StrCat("unknown flag ", word.substr(0, equals),
                                          nearest.empty() ? "" : absl::StrCat("; did you mean --", nearest, "?")));
  }
  const gflags::CommandLineFlagInfo info = FlagInfo(name);
  if (!has_value && info.type == "bool") {
    value = "true";
  } else if (!has_value) {
    if (*i + 1 >= words.size()) {
      return WrongUse(command, absl::StrCat("--", name, " has no value, expected ", FlagUsage(info)));
    }
    value = words[++*i];
  }
  if (Contains(command.repeated_flags, name)) {
    line->repeated[name].push_back(value);
    return absl::OkStatus();
  }
  if (gflags::SetCommandLineOption(name.c_str(), value.c_str()).empty()) {
    return WrongUse(command, absl::StrCat("--", name, ": found '", value, "', expected ", ExpectedValue(info)));
  }
  return absl::OkStatus();
}

absl::Status ReadWords(const Command& command, const std::vector<std::string>& words, CommandLine* line) {
  bool flags_ended = false;
  for (size_t i = 1; i < words.size(); ++i) {
    if (flags_ended || words[i].size() < 2 || words[i][0] != '-') {
      line->arguments.push_back(words[i]);
    } else if (words[i] == "--") {
      flags_ended = true;
    } else {
      RETURN_IF_ERROR(ReadFlag(command, words, &i, line));
    }
  }
  const size_t count = line->arguments.size();
  if (count < command.min_arguments) {
    return WrongUse(command, absl::StrCat("missing argument, expected: thimble ", command.name, " ", command.usage));
  }
  if (count > command.max_arguments) {
    return WrongUse(command,
                    absl::StrCat("'", line->arguments[command.max_arguments],
                                 "' is one argument too many, expected: thimble ", command.name, " ", command.usage));
  }
  return absl::OkStatus();
}

// What was printed may not have arrived: a full disk behind a redirection, for example.
absl::Status OutputStatus() {
  const bool whole = std::fflush(stdout) == 0 && std::ferror(stdout) == 0;
  return whole ? absl::OkStatus()
               : absl::UnknownError(absl::StrCat("cannot write to standard output: ", std::strerror(errno)));
}

int Report(absl::Status status) {
  status.Update(OutputStatus());
  if (!status.ok()) std::fprintf(stderr, "thimble: %s\n", std::string(status.message()).c_str());
  return ExitCodeOf(status);
}

bool AsksForHelp(const std::vector<std::string>& words) {
  for (const std::string& word : words) {
    if (word == "--") return false;
    if (word == "--help" || word == "-help" || word == "-h") return true;
  }
  return false;
}

}  // namespace

int ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kExitDone;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kUnimplemented:
      return kExitWrongInput;
    case absl::StatusCode::kResourceExhausted:
      return kExitDoesNotFit;
    case absl::StatusCode::kCancelled:
      return kExitInterrupted;
    default:
      return kExitFailed;
  }
}

std::vector<std::string> CommandLine::Values(const std::string& flag) const {
  const auto found = repeated.find(flag);
  return found == repeated.end() ? std::vector<std::string>() : found->second;
}

std::string CommandHelp(const Command& command) {
  std::string help =
      absl::StrCat("thimble ", command.name, " ", command.usage, "\n\n", command.description, "\n\nFlags:\n");
  for (const std::string& name : command.flags) {
    const gflags::CommandLineFlagInfo info = FlagInfo(name);
    std::string text = info.description;
    if (Contains(command.repeated_flags, name)) {
      absl::StrAppend(&text, " May be given many times.");
    } else if (info.type != "bool" && !info.default_value.empty()) {
      absl::StrAppend(&text, " Default: ", info.default_value, ".");
    } else if (info.default_value == "true") {
      absl::StrAppend(&text, " On by default; --no", name, " turns it off.");
    }
    AppendEntry("  " + FlagUsage(info), text, 22, &help);
  }
  AppendEntry("  --help", "This page.", 22, &help);
  absl::StrAppend(&help, "\nExample:\n", command.example, "\n");
  return help;
}

std::string ProgramHelp(const std::vector<Command>& commands) {
  std::string help =
      "thimble: memory-efficient fine-tuning of large language models\n\n"
      "thimble COMMAND [ARGUMENTS] [FLAGS]\n\nCommands:\n";
  for (const Command& command : commands) AppendEntry("  " + command.name, command.summary, 14, &help);
  absl::StrAppend(&help,
                  "\nthimble COMMAND --help explains a command, thimble help recipe every option of a\n"
                  "recipe. Exit codes: 0 done, 1 failed while running, 2 wrong input, 3 does not\n"
                  "fit the memory budget, 130 interrupted.\n");
  return help;
}

int RunCommandLine(const std::vector<Command>& commands, const std::vector<std::string>& words) {
  if (words.empty() || words[0] == "--help" || words[0] == "-h" || words[0] == "-help") {
    std::fputs(ProgramHelp(commands).c_str(), stdout);
    return Report(absl::OkStatus());
  }
  std::vector<std::string> names;
  for (const Command& command : commands) {
    names.push_back(command.name);
    if (command.name != words[0]) continue;
    if (AsksForHelp(words)) {
      std::fputs(CommandHelp(command).c_str(), stdout);
      return Report(absl::OkStatus());
    }
    const gflags::FlagSaver restores_defaults;
    CommandLine line;
    const absl::Status status = ReadWords(command, words, &line);
    return Report(status.ok() ? command.run(line) : status);
  }
  const bool is_flag = absl::StartsWith(words[0], "-");
  const std::string message = is_flag ? "expected a command before " + words[0]
                                      : absl::StrCat("unknown command '", words[0], "'", DidYouMean(words[0], names));
  return Report(absl::InvalidArgumentError(WithPointer(message, "thimble help")));
}

}  // namespace thimble
