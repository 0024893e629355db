// One line a command.
#include "recipes/commands/commands.h"

namespace thimble {

const std::vector<Command>& Commands() {
  // clang-format off
  static const std::vector<Command>* commands = new std::vector<Command>{
      TrainCommand(),
      EvalCommand(),
      CompareCommand(),
      GenerateCommand(),
      PlanCommand(),
      DataCommand(),
      ExportCommand(),
      QuantizeCommand(),
      InitCommand(),
      InspectCommand(),
      TokenizeCommand(),
      HelpCommand(),
  };
  // clang-format on
  return *commands;
}

}  // namespace thimble
