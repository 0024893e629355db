// A whole decoder by GPTQ: its linear layers one decoder layer after the other, each with the inputs that the layers
// already quantised give it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "data/bnb_weight.h"
#include "data/packing.h"
#include "ops/gptq.h"
#include "trainer/decoder.h"
#include "trainer/store.h"

namespace thimble {

// Of a decoder without adapters, whose weights lie in memory in a plain format. `batches` are what it is calibrated on.
// Calls use(linear layer, its weight) layer by layer, until it fails; the store holds the quantised weights from then
// on. Memory beyond the store: the hidden states of all batches, and of one layer the Hessians and its weights in f32.
// InvalidArgument, naming the layer, where groups do not fit or a Hessian is not positive definite.
absl::Status QuantizeByGptq(const Decoder& decoder, Store* store, const std::vector<Batch>& batches,
                            const Quantize4BitOptions& format, const GptqOptions& options,
                            absl::FunctionRef<absl::Status(const LinearWeights& linear, const QuantizedWeight&)> use);

}  // namespace thimble
