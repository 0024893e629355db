// The frame of the command line: commands in a table, their flags in gflags' registry, help, errors, exit codes.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace thimble {

enum ExitCode { kExitDone = 0, kExitFailed = 1, kExitWrongInput = 2, kExitDoesNotFit = 3, kExitInterrupted = 130 };

// InvalidArgument, NotFound, AlreadyExists, DataLoss, PermissionDenied, FailedPrecondition, OutOfRange and
// Unimplemented are the user's input; ResourceExhausted is a plan above the budget; Cancelled an interrupt.
int ExitCodeOf(const absl::Status& status);

// What stood behind the command's name. Flags that may be given once are in gflags' FLAGS_ variables.
struct CommandLine {
  std::vector<std::string> arguments;
  std::map<std::string, std::vector<std::string>> repeated;  // values of flags that may be given many times, in order

  std::vector<std::string> Values(const std::string& flag) const;
};

struct Command {
  std::string name;
  std::string summary;      // one line for the list of commands
  std::string usage;        // its arguments: "RECIPE", "MODEL|FILE"
  std::string description;  // what it does, in a few lines of at most 80 columns
  std::string example;      // command lines that work
  size_t min_arguments = 0;
  size_t max_arguments = 0;
  std::vector<std::string> flags;           // names in gflags' registry, defined beside the command or in flags.h
  std::vector<std::string> repeated_flags;  // those of `flags` that may be given many times
  absl::Status (*run)(const CommandLine& line) = nullptr;
};

// Runs the command that `words` (without the program's name) ask for and returns the exit code. An unknown command or
// flag, a wrong value and a wrong number of arguments are answered on standard error with the nearest valid name.
// Flags are --name=value or --name value; booleans --name or --noname; -- ends them. Every command has --help.
// Flags have their defaults again afterwards.
int RunCommandLine(const std::vector<Command>& commands, const std::vector<std::string>& words);

// The page of --help: purpose, arguments, flags with their defaults, an example.
std::string CommandHelp(const Command& command);
// The list of commands.
std::string ProgramHelp(const std::vector<Command>& commands);

}  // namespace thimble
