// thimble help: commands, and the options of recipes.
#include <cstdio>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "ops/check.h"
#include "recipes/commands/commands.h"
#include "recipes/nearest_name.h"
#include "recipes/recipe_help.h"
#include "recipes/text_layout.h"

namespace thimble {
namespace {

absl::Status Run(const CommandLine& line) {
  if (line.arguments.empty()) {
    std::fputs(ProgramHelp(Commands()).c_str(), stdout);
    return absl::OkStatus();
  }
  const std::string& topic = line.arguments[0];
  if (topic == "recipe" || absl::StartsWith(topic, "recipe.")) {
    ASSIGN_OR_RETURN(const std::string page, RecipeHelp(topic));
    std::fputs(page.c_str(), stdout);
    return absl::OkStatus();
  }
  std::vector<std::string> topics = {"recipe"};
  for (const Command& command : Commands()) {
    topics.push_back(command.name);
    if (command.name != topic) continue;
    std::fputs(CommandHelp(command).c_str(), stdout);
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      WithPointer(absl::StrCat("no help for '", topic, "'", DidYouMean(topic, topics)), "thimble help"));
}

}  // namespace

Command HelpCommand() {
  Command command;
  command.name = "help";
  command.summary = "Explain a command, or the options of a recipe.";
  command.usage = "[COMMAND | recipe | recipe.SECTION]";
  command.description =
      "Without an argument: the list of commands. `recipe`: every option of a recipe\n"
      "with its meaning, default, unit and cost. `recipe.data`: one section of it.";
  command.example = "  thimble help train\n  thimble help recipe.adapter";
  command.max_arguments = 1;
  command.run = Run;
  return command;
}

}  // namespace thimble
