// How fast this machine computes and moves bytes: measured once and kept in a small file of the user.
#pragma once

#include <string>

namespace thimble {

struct MachineRates {
  double f32_flops = 0;  // a second, in matrix products of a layer's kind
  double bf16_flops = 0;
  double attention_f32_flops = 0;
  double attention_bf16_flops = 0;
  double memory_bytes = 0;  // read plus written a second, by all threads
  double copy_bytes = 0;    // to or from the host tier a second
  double disk_bytes = 0;    // to or from a spill file a second
};

// Takes about a second, 64 MiB, and 32 MiB of the temporary folder.
MachineRates MeasureMachineRates();

// "$XDG_CACHE_HOME/thimble/machine_rates.json", by default under ~/.cache; empty without a home folder.
std::string MachineRatesPath();

// The rates kept at `path` where they are of this processor, thread count and version of the program; otherwise
// measured and written there. A file that cannot be read or written is passed over: rates change no result.
MachineRates LoadOrMeasureRates(const std::string& path);

}  // namespace thimble
