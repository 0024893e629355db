// Training for a format: beside a trained weight lies the same weight as it will be served, quantised with its adapter
// merged, bit for bit what an export writes. The forward pass reads that; gradients go straight through to what trains.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "ops/format.h"
#include "ops/round_tokens.h"
#include "trainer/decoder.h"
#include "trainer/store.h"
#include "trainer/tape.h"

namespace thimble {

// One of CanQuantizeMerged, whose blocks or groups fit into a row.
struct ServedFormat {
  Format format = Format::kBF16;
  int32_t group = 0;  // of codes with scales: values that share one; 0: a row
};

struct ServedOptions {
  // How a weight [rows, cols] (name as in checkpoints) will be served; nullopt: as it trains. Codes with scales are for
  // linear layers of the decoder.
  std::function<std::optional<ServedFormat>(const std::string& name, int64_t rows, int64_t cols)> format_of;
  ActivationGrid activations = ActivationGrid::kNone;
};

// Declares the served weights of a declared decoder, of matrices that train, that have adapters (no DoRA) or are frozen
// alike.
void DeclareServed(const ServedOptions& options, Decoder* decoder, Store* store);
bool HasServed(const Decoder& decoder);
// The served form of a weight; -1 when it has none.
StoreId ServedOf(const Decoder& decoder, StoreId weight);
// Gives them memory, where they have none yet.
void BindServed(const Decoder& decoder, Store* store);
// Records the quantisation of all of them, from the weights as they are when the tape runs.
void RecordQuantizeServed(const Decoder& decoder, Tape* tape);

}  // namespace thimble
