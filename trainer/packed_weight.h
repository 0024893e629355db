// A weight's codes and block statistics in one range of bytes, so that it can lie in a tier and be fetched as one.
#pragma once

#include <cstdint>

#include "ops/format.h"

namespace thimble {

// Bytes of a weight's codes and block statistics, wherever they lie.
int64_t PartBytes(const WeightView& weight);
// Bytes of the packed form; each part begins on a multiple of 64.
int64_t PackedBytes(const WeightView& weight);
// Upper bound of PackedBytes for a weight whose parts take `bytes` together.
int64_t PackedBytesBound(int64_t bytes);
// Writes PackedBytes(weight) bytes; the view of the packed form is that of UnpackedView.
void PackWeight(const WeightView& weight, char* out);
// The weight whose packed form lies at `packed`; `like` says everything but the addresses, by which it shows which
// parts there are.
WeightView UnpackedView(const WeightView& like, const char* packed);

}  // namespace thimble
