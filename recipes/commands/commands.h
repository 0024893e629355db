// The table of commands; each is in a file of its own beside this one.
#pragma once

#include <vector>

#include "recipes/command_line.h"

namespace thimble {

Command CompareCommand();
Command EvalCommand();
Command GenerateCommand();
Command DataCommand();
Command ExportCommand();
Command HelpCommand();
Command InitCommand();
Command InspectCommand();
Command PlanCommand();
Command QuantizeCommand();
Command TrainCommand();
Command TokenizeCommand();

// All commands in the order of the help page.
const std::vector<Command>& Commands();

}  // namespace thimble
