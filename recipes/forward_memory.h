// Memory of the commands that only use a model: what it is going to be, counted as a training plan is, and what was
// taken.
#pragma once

#include <algorithm>
#include <cstdint>

#include "trainer/engine.h"
#include "trainer/generator.h"
#include "trainer/store.h"

namespace thimble {

// Bytes of the device tier; to be gathered when the work is done.
struct ForwardMemory {
  int64_t planned = 0;
  int64_t measured = 0;

  void Add(const Store& store) {
    planned += store.ResidentBytes();
    measured += store.HeldBytes();
  }
  // What an engine or a generator takes beside its store.
  void Add(const Engine& engine) {
    planned += engine.arena_bytes();
    measured += engine.arena_high_water_bytes();
  }
  void Add(const Decoder& decoder, Store* store, const Generator& generator) {
    planned += Generator::WorkspaceBytes(decoder, store);
    measured += generator.HeldBytes();
  }
  // Of two pieces of work that follow each other.
  void Max(const ForwardMemory& other) {
    planned = std::max(planned, other.planned);
    measured = std::max(measured, other.measured);
  }
};

}  // namespace thimble
