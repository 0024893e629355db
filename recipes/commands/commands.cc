// One line a command.
#include "recipes/commands/commands.h"

namespace thimble {

const std::vector<Command>& Commands() {
  // clang-format off
  static const std::vector<Command>* commands = new std::vector<Command>{
      TrainCommand(),
      PlanCommand(),
      DataCommand(),
      EvalCommand(),
      GenerateCommand(),
      ExportCommand(),
      QuantizeCommand(),
      InspectCommand(),
      TokenizeCommand(),
      HelpCommand(),
  };
  // clang-format on
  return *commands;
}

}  // namespace thimble
