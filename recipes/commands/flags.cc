// Flags that several commands share.
#include "recipes/commands/flags.h"

#include <gflags/gflags.h>

DEFINE_bool(json, false, "Print one JSON object on standard output; messages go to standard error.");
DEFINE_string(set, "", "Override a recipe's option: --set training.steps=100.");
