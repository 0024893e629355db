// One line a command.
#include "recipes/commands/commands.h"

namespace thimble {

const std::vector<Command>& Commands() {
  static const std::vector<Command>* commands = new std::vector<Command>{
      TrainCommand(),
      EvalCommand(),
      GenerateCommand(),
      InspectCommand(),
      TokenizeCommand(),
      HelpCommand(),
  };
  return *commands;
}

}  // namespace thimble
