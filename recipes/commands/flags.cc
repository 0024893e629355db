// Flags that several commands share.
#include "recipes/commands/flags.h"

#include <gflags/gflags.h>

DEFINE_bool(best, false, "Of a run: the best checkpoint instead of the latest.");
DEFINE_string(chat_format, "",
              "auto, chatml, llama3, mistral, zephyr, alpaca or plain. Empty: as the run, else auto, which recognises "
              "the model's own template.");
DEFINE_bool(json, false, "Print one JSON object on standard output; messages go to standard error.");
DEFINE_int64(max_new_tokens, 256, "Tokens of an answer at most.");
DEFINE_string(set, "", "Override a recipe's option: --set training.steps=100.");
