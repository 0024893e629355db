// A decoder's forward pass, recorded on a tape.
#pragma once

#include <cstdint>
#include <vector>

#include "trainer/decoder.h"
#include "trainer/tape.h"

namespace thimble {

struct DecoderInputs {
  ValueId ids = kNoValue;        // [1, T]
  ValueId positions = kNoValue;  // [1, T]
  ValueId starts = kNoValue;     // [1, T]
  ValueId targets = kNoValue;    // [1, T], training and evaluation
};
DecoderInputs RecordInputs(Tape* tape, int64_t tokens);

struct RecordOptions {
  bool dropout = false;  // training: the adapter's dropout is active
  // Tokens of a tile of everything but attention, which runs one key/value head at a time: no value is as large as all
  // tokens times the hidden width. A multiple of kMatMulInnerBlock, or more where that would be above 16 tiles; 0: all
  // tokens at once. With frozen norms and biases gradients are the same bits; trained ones are sums over tiles.
  int64_t sequence_tile = 0;
  // Tokens of a tile of the MLP, a multiple of kMatMulInnerBlock, or more where that would be above 16 tiles, or above
  // 4 in each tile of the sequence; 0: as the rest. Gradients are the same bits but for the sums over tokens of
  // dropped-out inputs.
  int64_t mlp_tile = 0;
  // Weights as they will be served and activations on their grid, where the decoder has such (served_weights.h).
  bool served = true;
  // Of a teacher, which no gradient passes: its values belong to no layer, so that no policy saves them.
  bool apart = false;
  std::vector<StoreId> caches;  // generation: two store entries a layer, keys and values; else empty
};

// Rows [begin, begin + rows) of the sequence.
struct TokenTile {
  int64_t begin = 0;
  int64_t rows = 0;
};
// The tiles of a sequence of this many tokens; one without sequence_tile.
std::vector<TokenTile> TokenTiles(int64_t tokens, int64_t sequence_tile);

// The last layer's result, [rows, hidden] for each of TokenTiles().
std::vector<ValueId> RecordLayers(Tape* tape, const Decoder& decoder, const DecoderInputs& inputs,
                                  const RecordOptions& options);
// Final hidden states of a tile, of which the output layer makes logits.
ValueId RecordFinalNorm(Tape* tape, const Decoder& decoder, ValueId x);

}  // namespace thimble
