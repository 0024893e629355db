// Rotary position embedding, rotate-half: pairs (i, i + d/2) of the first d dimensions of every head, d = 2 * cos.cols;
// y_i = x_i cos - x_{i+d/2} sin, y_{i+d/2} = x_{i+d/2} cos + x_i sin; dimensions from d on are copied.
// Source: Su et al. 2021, arXiv:2104.09864; scaling as in Hugging Face's modeling_rope_utils.py.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/view.h"

namespace thimble {

// Fields as in config.json's rope_scaling; what a type does not name is not read.
struct RopeScaling {
  enum class Type : uint8_t { kNone, kLinear, kLlama3, kYarn };
  Type type = Type::kNone;
  float factor = 1;                   // linear, llama3, yarn
  float low_freq_factor = 1;          // llama3
  float high_freq_factor = 4;         // llama3
  int64_t original_max_position = 0;  // llama3, yarn: original_max_position_embeddings
  float beta_fast = 32;               // yarn
  float beta_slow = 1;                // yarn
  float attention_factor = 0;         // yarn; 0: from factor, mscale and mscale_all_dim
  float mscale = 0;                   // yarn; 0: absent
  float mscale_all_dim = 0;           // yarn; 0: absent
  bool truncate = true;               // yarn: whole dimensions as bounds of the ramp
};

struct RopeFrequencies {
  std::vector<float> inv_freq;  // [d/2], radians a position
  float attention_factor = 1;   // multiplies cos and sin
};

// The frequencies of `head_dim` rotated dimensions (even) with base theta, computed with the roundings to float of
// Hugging Face. max_position is used by no type here; llama3 and yarn need original_max_position.
RopeFrequencies MakeRopeFrequencies(int head_dim, double theta, const RopeScaling& scaling, int64_t max_position);

// cos, sin [T, d/2]: of positions_t * inv_freq_i (rounded to float), times attention_factor.
void RopeTable(ConstInts positions, ConstVector inv_freq, float attention_factor, Matrix cos, Matrix sin);

// x, y [T, heads * head_dim]; y is written and may be x.
void RopeForward(ConstMatrix x, ConstMatrix cos, ConstMatrix sin, int head_dim, Matrix y);
// dx is written and may be dy.
void RopeBackward(ConstMatrix dy, ConstMatrix cos, ConstMatrix sin, int head_dim, Matrix dx);

}  // namespace thimble
