// The program thimble.
#include <string>
#include <vector>

#include "recipes/commands/commands.h"

int main(int argc, char** argv) {
  return thimble::RunCommandLine(thimble::Commands(), std::vector<std::string>(argv + 1, argv + argc));
}
