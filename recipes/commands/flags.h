// Flags that several commands share.
#pragma once

#include <gflags/gflags_declare.h>

DECLARE_bool(best);
DECLARE_string(chat_format);
DECLARE_int64(max_new_tokens);
DECLARE_string(data);
DECLARE_string(format);
DECLARE_bool(json);
DECLARE_string(out);
DECLARE_int64(seed);
DECLARE_string(set);
