// Flags that several commands share.
#pragma once

#include <gflags/gflags_declare.h>

DECLARE_bool(json);
DECLARE_string(set);
