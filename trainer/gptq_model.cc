#include "trainer/gptq_model.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "ops/check.h"
#include "ops/quantize_scaled.h"
#include "trainer/executor.h"
#include "trainer/memory_plan.h"
#include "trainer/record_decoder.h"
#include "trainer/tape.h"

namespace thimble {
namespace {

using Inputs = std::map<StoreId, std::vector<double>>;  // Hessians by weight

// One layer of a decoder as a model of its own, whose embedding is the hidden states before it.
class LayerModel {
 public:
  LayerModel(const Decoder& decoder, Store* store, StoreId hidden) : whole_(decoder), store_(*store), one_(decoder) {
    one_.embedding = hidden;
    one_.config.num_layers = 1;
  }

  void Choose(int64_t layer) {
    one_.layers = {whole_.layers[layer]};
    one_.config.windows = {whole_.config.windows[layer]};
  }

  // Hidden states [tokens, hidden] before the layer to those behind it; what the named weights see is summed up.
  absl::Status Run(const Batch& batch, Inputs* inputs, std::vector<float>* hidden) {
    const auto tokens = static_cast<int64_t>(batch.tokens.size());
    std::copy(hidden->begin(), hidden->end(), store_.matrix(one_.embedding).data);
    std::vector<int32_t> rows(tokens), targets(tokens, -100);
    for (int64_t t = 0; t < tokens; ++t) rows[t] = static_cast<int32_t>(t);
    Tape tape(&store_);
    const DecoderInputs in = RecordInputs(&tape, tokens);
    const ValueId out = RecordLayers(&tape, one_, in, RecordOptions()).front();
    if (inputs != nullptr) Watch(&tape, inputs);
    const TierPlans plan = PlanTiers(tape, {out});
    Arena arena(plan.device.peak_bytes);
    if (!arena.ok()) return absl::ResourceExhaustedError("no memory for the calibration of a layer");
    Executor executor(&tape, &plan, Tiers{&arena});
    executor.Bind(in.ids, rows.data());
    executor.Bind(in.positions, batch.positions.data());
    executor.Bind(in.starts, batch.starts.data());
    executor.Bind(in.targets, targets.data());
    RunScalars scalars;
    RETURN_IF_ERROR(executor.Run(&scalars));
    const ConstMatrix result = executor.Result(out);
    for (int64_t t = 0; t < tokens; ++t) std::copy_n(result.row(t), result.cols, hidden->data() + t * result.cols);
    return absl::OkStatus();
  }

 private:
  static void Watch(Tape* tape, Inputs* inputs) {
    std::vector<Step> steps = tape->steps();
    for (Step& step : steps) {
      if (step.op != "matmul_nt") continue;
      const auto found = inputs->find(tape->value(step.inputs[1]).store);
      if (found == inputs->end()) continue;
      step.run = [run = step.run, hessian = &found->second](const StepContext& c) {
        AccumulateHessian(c.In(0), hessian);
        run(c);
      };
    }
    tape->ReplaceSteps(std::move(steps));
  }

  const Decoder& whole_;
  Store& store_;
  Decoder one_;
};

// Scales by rounding to nearest; GPTQ keeps them.
absl::StatusOr<QuantizedWeight> Nearest(const std::string& name, const std::vector<float>& values, int64_t rows,
                                        int64_t cols, const Quantize4BitOptions& format) {
  const ConstVector all(values.data(), rows * cols);
  if (Is4Bit(format.format)) {
    WeightQuantizer quantizer(format.format, rows, cols, format.block_size, format.double_quant);
    quantizer.Push(all);
    if (quantizer.finite() && cols % 2 == 0) return quantizer.Finish();
    return absl::InvalidArgumentError(absl::StrCat(name, ": expected finite weights in an even number of columns"));
  }
  const int64_t group = GroupOf(format.format, format.block_size, cols);
  if (group == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": has ", cols, " columns, which groups of ", format.block_size, " do not fit into"));
  }
  QuantizedWeight w = MakeScaledWeight(format.format, rows, cols, group);
  if (format.format == Format::kE2M1) {
    float peak = 0;
    for (const float value : values) peak = std::max(peak, std::fabs(value));
    SetTensorScale(peak, &w);
  }
  if (QuantizeScaledRows(all, 0, &w)) return w;
  return absl::InvalidArgumentError(absl::StrCat(name, ": holds NaN or infinity; a weight must be finite"));
}

// Hidden states of a batch before the first layer.
std::vector<float> Embedded(const Store& store, StoreId embedding, const Batch& batch) {
  const WeightView& table = store.entry(embedding).view;
  std::vector<float> hidden(batch.tokens.size() * table.cols);
  for (size_t t = 0; t < batch.tokens.size(); ++t) {
    DecodeRow(table, batch.tokens[t], 0, table.cols, hidden.data() + t * table.cols);
  }
  return hidden;
}

using Use = absl::FunctionRef<absl::Status(const LinearWeights& linear, const QuantizedWeight&)>;

// Of these that see the same inputs, the first stands for all.
std::vector<std::vector<const LinearWeights*>> Alike(const LayerWeights& layer) {
  return {{&layer.q, &layer.k, &layer.v}, {&layer.o}, {&layer.gate, &layer.up}, {&layer.down}};
}

absl::Status QuantizeLinear(const LinearWeights& linear, const GptqOrder& order, const Quantize4BitOptions& format,
                            Store* store, Use use) {
  const WeightView& view = store->entry(linear.weight).view;
  std::vector<float> values(view.rows * view.cols);
  for (int64_t r = 0; r < view.rows; ++r) DecodeRow(view, r, 0, view.cols, &values[r * view.cols]);
  ASSIGN_OR_RETURN(QuantizedWeight weight, Nearest(linear.name, values, view.rows, view.cols, format));
  order.Quantize({values.data(), view.rows, view.cols, view.cols}, &weight);
  RETURN_IF_ERROR(use(linear, weight));
  auto owned = std::make_shared<QuantizedWeight>(std::move(weight));
  const WeightView quantised = owned->View();
  return store->Bind(linear.weight, quantised, std::move(owned));
}

absl::Status QuantizeLayer(const LayerWeights& layer, const Inputs& inputs, const Quantize4BitOptions& format,
                           const GptqOptions& options, Store* store, Use use) {
  for (const auto& linears : Alike(layer)) {
    const StoreEntry& first = store->entry(linears[0]->weight);
    const GptqOrder order(inputs.at(linears[0]->weight), first.cols, options);
    if (!order.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(linears[0]->name,
                       ": the Hessian of its inputs is not positive definite: raise the damping or give more rows"));
    }
    for (const LinearWeights* linear : linears) RETURN_IF_ERROR(QuantizeLinear(*linear, order, format, store, use));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status QuantizeByGptq(const Decoder& decoder, Store* store, const std::vector<Batch>& batches,
                            const Quantize4BitOptions& format, const GptqOptions& options, Use use) {
  size_t most = 0;
  std::vector<std::vector<float>> hidden;
  for (const Batch& batch : batches) {
    most = std::max(most, batch.tokens.size());
    hidden.push_back(Embedded(*store, decoder.embedding, batch));
  }
  const StoreId states =
      store->Add("calibration.hidden", static_cast<int64_t>(most), decoder.config.hidden_dim, Category::kCache);
  RETURN_IF_ERROR(store->TakeMemory());
  LayerModel model(decoder, store, states);
  for (int64_t l = 0; l < decoder.config.num_layers; ++l) {
    const LayerWeights& layer = decoder.layers[l];
    Inputs inputs;
    for (const auto& linears : Alike(layer)) {
      const int64_t cols = store->entry(linears[0]->weight).cols;
      inputs[linears[0]->weight].assign(cols * cols, 0);
    }
    model.Choose(l);
    for (size_t b = 0; b < batches.size(); ++b) {
      std::vector<float> before = hidden[b];
      RETURN_IF_ERROR(model.Run(batches[b], &inputs, &before));
    }
    RETURN_IF_ERROR(QuantizeLayer(layer, inputs, format, options, store, use));
    for (size_t b = 0; b < batches.size(); ++b) RETURN_IF_ERROR(model.Run(batches[b], nullptr, &hidden[b]));
  }
  return absl::OkStatus();
}

}  // namespace thimble
