// Flags that several commands share.
#include "recipes/commands/flags.h"

#include <gflags/gflags.h>

DEFINE_bool(best, false, "Of a run: the best checkpoint instead of the latest.");
DEFINE_string(chat_format, "",
              "auto, chatml, llama3, mistral, zephyr, alpaca or plain. Empty: as the run, else auto, which recognises "
              "the model's own template.");
DEFINE_int64(max_new_tokens, 256, "Tokens of an answer at most.");
DEFINE_string(data, "", "File of rows: JSON, JSON lines or plain text, also as .zst.");
DEFINE_string(format, "", "What to write, as said above.");
DEFINE_bool(json, false, "Print one JSON object on standard output; messages go to standard error.");
DEFINE_string(out, "", "Folder to write; it must not exist, or be empty.");
DEFINE_int64(seed, 0, "Of what is drawn; the same seed gives the same result.");
DEFINE_string(set, "", "Override a recipe's option: --set training.steps=100.");
