// What a pass of cut cross-entropy works on and in. For ops/linear_cross_entropy.cc.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/head_rows.h"
#include "ops/linear_cross_entropy.h"
#include "ops/matmul_bf16.h"
#include "ops/parallel.h"
#include "ops/scratch_carver.h"

namespace thimble {

inline constexpr int64_t kWidestPanel = 32;     // of any CPU level
inline constexpr int64_t kTileBytes = 1310720;  // of both packed forms of a head tile
inline constexpr int64_t kMaxVocabTile = 256;   // one depth block of the product P C
inline constexpr int64_t kSuperBlock = 512;     // rows whose logits of one vocabulary tile exist at a time
inline constexpr int64_t kMaxRowBlock = 96;     // rows of one task
// kMaxRowBlock x 256 rounded hidden states or twice as many in bf16, or kSuperBlock x one panel.
inline constexpr int64_t kFloatsPerThread = 24576;

struct ScratchLayout {
  int64_t vocab_tile;
  int32_t* rows;  // tokens that have a target
  float* sum;     // running sum of each
  float *turned, *straight;
  float* logits;      // [kSuperBlock][vocab_tile]
  int32_t* active;    // [kSuperBlock]: not filtered
  float* head_sum;    // [D] sum of head rows
  float* hidden_sum;  // [D] sum of hidden states that have a target
  char* fetched;      // of a head that is read through a reader
  float* threads;

  ScratchLayout(ScratchCarver& carver, int64_t tokens, int64_t dim, int64_t fetched_row_bytes) {
    const int64_t width = (dim + kWidestPanel - 1) / kWidestPanel * kWidestPanel;
    const int64_t fits = kTileBytes / (8 * std::max<int64_t>(width, 1)) / kWidestPanel * kWidestPanel;
    vocab_tile = std::clamp(fits, kWidestPanel, kMaxVocabTile);
    rows = carver.Take<int32_t>(tokens);
    sum = carver.Take<float>(tokens);
    turned = carver.Take<float>(vocab_tile * width);
    straight = carver.Take<float>(vocab_tile * width);
    logits = carver.Take<float>(kSuperBlock * vocab_tile);
    active = carver.Take<int32_t>(kSuperBlock);
    head_sum = carver.Take<float>(width);
    hidden_sum = carver.Take<float>(width);
    fetched = carver.Take<char>(HeadRows::BufferBytes(vocab_tile, fetched_row_bytes));
    threads = carver.Take<float>(NumThreads() * kFloatsPerThread);
  }
};

enum class Kind : uint8_t { kForward, kFused, kBackward };

struct Pass {
  Kind kind;
  ConstMatrix h;
  WeightView head;
  ConstInts targets;
  LinearCrossEntropyOptions options;
  float scale;       // d: of the losses in the gradient
  Vector loss, lse;  // written; while tiles run, lse holds the maximum and loss the weighted logits
  ConstVector known_lse;
  Matrix dh, dhead;

  bool bf16() const { return options.compute == Compute::kBF16; }
  // Smoothing sums the head's rows, which only their float form allows. The same for every kind of pass, whose losses
  // are the same bits.
  bool on_tiles() const { return OnTiles(options.compute) && options.label_smoothing == 0; }
  // With smoothing no entry of the gradient is small: the filter then looks at softmax - target and the rest is added
  // exactly, which a soft cap's factors forbid.
  bool filtered() const {
    return options.filter_threshold > 0 && !(options.soft_cap > 0 && options.label_smoothing > 0);
  }
  bool smoothing_apart() const {
    return options.label_smoothing > 0 && (kind == Kind::kFused || (kind == Kind::kBackward && filtered()));
  }
};

}  // namespace thimble
