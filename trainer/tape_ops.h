// Records ops on a tape: one short function an op, which appends the forward step and says how its gradient is
// appended.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ops/attention.h"
#include "ops/linear_cross_entropy.h"
#include "ops/linear_distillation.h"
#include "ops/matmul.h"
#include "ops/round_tokens.h"
#include "ops/swiglu.h"
#include "trainer/tape.h"

namespace thimble {

// table [vocab, dim] (store), ids [T] -> y [rows, dim] of ids [first, first + rows).
// `trained`: the parameter that the gradient belongs to, where that is not the table itself.
ValueId RecordEmbedding(Tape* tape, ValueId table, ValueId ids, int64_t first, int64_t rows, const std::string& name,
                        ValueId trained = kNoValue);

// Normalises groups of `dim` columns: x [T, n * dim], w [1, dim] -> y as x. n > 1 for norms per head.
ValueId RecordRmsNorm(Tape* tape, ValueId x, ValueId w, float eps, const std::string& name);

// y = x W^T (+ bias); w [out, in] in any format, bias [1, out] or kNoValue.
ValueId RecordLinear(Tape* tape, ValueId x, ValueId w, ValueId bias, Compute compute, const std::string& name);

// BitNet b1.58: an input's rows in int8, shared by the linear layers that read it; a weight's ternary codes; and their
// product (ops/bit_linear.h), whose gradients pass straight through both to x and w. `compute`: of the gradients.
struct Int8Rows {
  ValueId values = kNoValue;  // [T, Int8RowWords(in)]
  ValueId scale = kNoValue;   // [1, T]
};
Int8Rows RecordQuantizeRows(Tape* tape, ValueId x, const std::string& name);
struct TernaryWeight {       // none: of a frozen weight that is stored as Format::kTernary
  ValueId codes = kNoValue;  // [out, TernaryRowWords(in)]
  ValueId gamma = kNoValue;  // [1, 1]
};
TernaryWeight RecordTernarize(Tape* tape, ValueId w, const std::string& name);
ValueId RecordBitLinear(Tape* tape, ValueId x, const Int8Rows& rows, ValueId w, const TernaryWeight& ternary,
                        ValueId bias, Compute compute, const std::string& name);
// The product alone, of a weight that is stored as Format::kTernary: passes no gradient.
ValueId RecordTernaryProduct(Tape* tape, const Int8Rows& rows, ValueId w, const std::string& name);

struct LoraSpec {
  ValueId a = kNoValue;          // [rank, in]
  ValueId b = kNoValue;          // [out, rank]
  ValueId magnitude = kNoValue;  // [1, out]: DoRA
  float scale = 1;
  float dropout = 0;
  uint64_t seed = 0;      // of this module's dropout masks
  int64_t first_row = 0;  // of x in the micro-batch, for the masks
};
// y = x W^T + scale * dropout(x) A^T B^T (+ bias), or its DoRA form.
ValueId RecordLoraLinear(Tape* tape, ValueId x, ValueId w, ValueId bias, const LoraSpec& lora, Compute compute,
                         const std::string& name);
// The same where `base` holds the product of x and w, however it was computed: dx is dy W. Not of DoRA.
ValueId RecordLoraBeside(Tape* tape, ValueId base, ValueId x, ValueId w, ValueId bias, const LoraSpec& lora,
                         Compute compute, const std::string& name);

// Training for a format: forward with the weight as it will be served, gradients to what it is made of as if nothing
// were rounded (straight through). `trained` [out, in], where it trains, gets dy^T x; a lora with its matrices gets
// their gradients in its place (no dropout, no magnitude).
struct ServedLinear {
  ValueId served = kNoValue;  // [out, in], packed
  ValueId trained = kNoValue;
  LoraSpec lora;
};
ValueId RecordServedLinear(Tape* tape, ValueId x, const ServedLinear& linear, ValueId bias, Compute compute,
                           const std::string& name);
// y = x rounded to the grid; its gradient is x's.
ValueId RecordRoundTokens(Tape* tape, ValueId x, ActivationGrid grid, const std::string& name);
// served = W + scale * B A quantised; lora.a is kNoValue where there is no adapter.
void RecordQuantizeMerged(Tape* tape, ValueId w, const LoraSpec& lora, ValueId served);

struct RopeTableValues {
  ValueId cos = kNoValue;  // [T, head_dim / 2]
  ValueId sin = kNoValue;
};
RopeTableValues RecordRopeTable(Tape* tape, ValueId positions, std::vector<float> inv_freq, float attention_factor);
// x's first row is row `first` of the table.
ValueId RecordRope(Tape* tape, ValueId x, const RopeTableValues& table, int64_t first, int head_dim,
                   const std::string& name);

// q [T, H*D]; k, v [T, KV*D]; starts [T].
ValueId RecordAttention(Tape* tape, ValueId q, ValueId k, ValueId v, ValueId starts, const AttentionShape& shape,
                        const std::string& name);

// Appends k and v to the caches (store values [capacity, KV*D]) behind past_tokens rows and attends to all of them.
// starts are cache rows. Has no gradient: generation only.
ValueId RecordCachedAttention(Tape* tape, ValueId q, ValueId k, ValueId v, ValueId k_cache, ValueId v_cache,
                              ValueId starts, const AttentionShape& shape, const std::string& name);

// y = act(gate) * up, act being silu or relu squared.
ValueId RecordGatedUnit(Tape* tape, GateActivation activation, ValueId gate, ValueId up, const std::string& name);
ValueId RecordAdd(Tape* tape, ValueId a, ValueId b, const std::string& name);

// y = x[begin .. begin + rows). All uses of x that pass a gradient must be such slices, together all of its rows and
// none twice.
ValueId RecordSliceRows(Tape* tape, ValueId x, int64_t begin, int64_t rows, const std::string& name);
// [total, cols] with these rows at `begin` and the others as in so_far (kNoValue: not set yet); so_far is not to be
// used elsewhere.
ValueId RecordSetRows(Tape* tape, ValueId so_far, ValueId rows, int64_t begin, int64_t total, const std::string& name);

// Each of xs [T, parts * w] (its own w) as `parts` values [T, w]: those of the first x, then those of the next.
std::vector<ValueId> RecordSplitColumns(Tape* tape, const std::vector<ValueId>& xs, int64_t parts,
                                        const std::string& name);
// The columns of all pieces side by side, in one value; a single piece as it is.
ValueId RecordJoinColumns(Tape* tape, const std::vector<ValueId>& pieces, const std::string& name);
// x as values of so many rows each, and back.
std::vector<ValueId> RecordSplitRows(Tape* tape, ValueId x, const std::vector<int64_t>& rows, const std::string& name);
ValueId RecordJoinRows(Tape* tape, const std::vector<ValueId>& pieces, const std::string& name);

struct LossValues {
  ValueId loss = kNoValue;  // [1, T], 0 where there is no target
  ValueId lse = kNoValue;   // [1, T]
};
// Cut cross-entropy of hidden [T, D] against head [V, D]; target t is targets[first + t]. The gradient is that of
// sum(loss) * inverse_targets (a run scalar). With `train`, a frozen head computes loss and hidden gradient in one
// pass.
// `trained`: the parameter that the head's gradient belongs to, where that is not the head itself.
LossValues RecordLinearCrossEntropy(Tape* tape, ValueId hidden, ValueId head, ValueId targets, int64_t first,
                                    const LinearCrossEntropyOptions& options, bool train, ValueId trained = kNoValue);

struct DistillationValues {
  ValueId hidden = kNoValue, head = kNoValue;                  // [T, D], [V, D]
  ValueId teacher_hidden = kNoValue, teacher_head = kNoValue;  // [T, D_t], [V, D_t]; no gradient passes
  ValueId targets = kNoValue;
  ValueId trained = kNoValue;  // the parameter of the head's gradient, where that is not the head itself
};
// Cross-entropy mixed with the divergence from a teacher; target t is targets[first + t]. Returns the loss [1, T], 0
// where there is no target. The gradient is that of sum(loss) * inverse_targets (a run scalar).
ValueId RecordLinearDistillation(Tape* tape, const DistillationValues& values, int64_t first,
                                 const LinearDistillationOptions& options);

}  // namespace thimble
