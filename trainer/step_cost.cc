#include "trainer/step_cost.h"

#include <algorithm>
#include <map>
#include <string_view>

namespace thimble {
namespace {

using Unit = StepCost::Unit;

// A step with what its formula needs.
struct Shapes {
  const Tape& tape;
  const Step& step;
  double Rows(int input) const { return static_cast<double>(tape.value(step.inputs[input]).rows); }
  double Size(int input) const {
    const Value& value = tape.value(step.inputs[input]);
    return static_cast<double>(value.rows) * static_cast<double>(value.cols);
  }
};

// Keys that a query sees, on average over a sample.
double MeanKeys(const CostContext& context, int64_t tokens, int32_t layer) {
  const double length = static_cast<double>(std::min(tokens, std::max<int64_t>(1, context.sequence_tokens)));
  const bool has_window = layer >= 0 && static_cast<size_t>(layer) < context.windows.size();
  const double window = has_window ? static_cast<double>(context.windows[layer]) : 0;
  if (window == 0 || window >= length) return (length + 1) / 2;
  return window - window * (window - 1) / (2 * length);
}

struct Formula {
  Unit unit;
  double (*flops)(const Shapes& s, double keys);
};

// Ops that multiply matrices; all others are bounded by the memory they pass over.
const std::map<std::string_view, Formula>& Formulas() {
  static const auto* formulas = new std::map<std::string_view, Formula>{
      {"matmul_nt", {Unit::kMatMul, [](const Shapes& s, double) { return 2 * s.Rows(0) * s.Size(1); }}},
      {"matmul_nn", {Unit::kMatMul, [](const Shapes& s, double) { return 2 * s.Rows(0) * s.Size(1); }}},
      {"matmul_tn", {Unit::kMatMul, [](const Shapes& s, double) { return 2 * s.Rows(0) * s.Size(2); }}},
      {"bit_linear", {Unit::kMatMul, [](const Shapes& s, double) { return 2 * s.Rows(0) * s.Size(2); }}},
      {"bit_linear_backward",
       {Unit::kMatMul,
        [](const Shapes& s, double) {
          const double in = static_cast<double>(s.tape.value(s.step.outputs[0]).cols);
          return 2 * s.Size(0) * in;
        }}},
      {"lora_down", {Unit::kMatMul, [](const Shapes& s, double) { return 2 * s.Rows(0) * s.Size(1); }}},
      {"lora_up", {Unit::kMatMul, [](const Shapes& s, double) { return 2 * s.Rows(0) * s.Size(2); }}},
      // dB, d(xA), dA, and dx where it is asked for.
      {"lora_backward",
       {Unit::kMatMul,
        [](const Shapes& s, double) {
          const double to_input = s.step.outputs.empty() ? 1 : 2;
          return 2 * s.Rows(0) * (to_input * s.Size(1) + 2 * s.Size(2));
        }}},
      // x A, dB, d(xA) and dA.
      {"served_lora_backward",
       {Unit::kMatMul, [](const Shapes& s, double) { return 2 * s.Rows(0) * (2 * s.Size(1) + 2 * s.Size(2)); }}},
      // B A, row by row.
      {"dora_norm", {Unit::kMatMul, [](const Shapes& s, double) { return 2 * s.Size(0) * s.Rows(1); }}},
      // The base product of the masked input, and the adapter's.
      {"dora_dropout",
       {Unit::kMatMul, [](const Shapes& s, double) { return 2 * s.Rows(1) * (s.Size(2) + s.Size(3) + s.Size(4)); }}},
      {"dora_dropout_backward",
       {Unit::kMatMul,
        [](const Shapes& s, double) { return 2 * s.Rows(0) * (2 * s.Size(1) + 2 * s.Size(2) + 3 * s.Size(3)); }}},
      // Scores and sums forward; both again, and the gradients of q, k and v, backward.
      {"attention", {Unit::kAttention, [](const Shapes& s, double keys) { return 4 * s.Size(0) * keys; }}},
      {"attention_backward", {Unit::kAttention, [](const Shapes& s, double keys) { return 10 * s.Size(0) * keys; }}},
      {"linear_cross_entropy", {Unit::kMatMul, [](const Shapes& s, double) { return 2 * s.Rows(0) * s.Size(1); }}},
      {"linear_cross_entropy_fused",
       {Unit::kMatMul, [](const Shapes& s, double) { return 4 * s.Rows(0) * s.Size(1); }}},
      // Logits again, the hidden gradient, and the head's where it trains.
      {"linear_cross_entropy_backward",
       {Unit::kMatMul,
        [](const Shapes& s, double) { return 2 * s.Rows(0) * s.Size(1) * (s.step.inputs.size() > 4 ? 3 : 2); }}},
      {"linear_distillation",
       {Unit::kMatMul, [](const Shapes& s, double) { return 2 * s.Rows(0) * (s.Size(1) + s.Size(3)); }}},
      {"linear_distillation_backward",
       {Unit::kMatMul,
        [](const Shapes& s, double) {
          return 2 * s.Rows(0) * (s.Size(1) * (s.step.inputs.size() > 6 ? 3 : 2) + s.Size(3));
        }}},
  };
  return *formulas;
}

int64_t BytesOf(const Tape& tape, ValueId id) {
  const Value& value = tape.value(id);
  return value.placement == Placement::kStore ? tape.store().entry(value.store).bytes : value.bytes();
}

// Where a put goes.
ValueId WrittenBy(const Step& put) { return put.outputs.empty() ? put.inputs[1] : put.outputs[0]; }

bool IsFetchedState(const Value& value) {
  return value.placement == Placement::kActivation && value.store >= 0 && value.packed_bytes == 0;
}

// The fetched part of an optimiser's state that a step works on or moves; kNoValue when there is none.
ValueId FetchedStateOf(const Tape& tape, const Step& step) {
  for (const std::vector<ValueId>* ids : {&step.inputs, &step.outputs}) {
    for (ValueId id : *ids) {
      if (IsFetchedState(tape.value(id))) return id;
    }
  }
  return kNoValue;
}

// Of such a step: the part, and the same share of gradient and parameter.
int64_t BytesOfPart(const Tape& tape, const Step& step, ValueId state) {
  const Value& part = tape.value(state);
  if (step.transfer != TransferKind::kNone) return 2 * part.bytes();
  const double share = static_cast<double>(part.bytes()) / static_cast<double>(tape.store().entry(part.store).bytes);
  double bytes = 0;
  for (ValueId id : step.inputs) {
    const Value& value = tape.value(id);
    bytes += static_cast<double>(value.bytes()) * (IsFetchedState(value) ? 1 : share);
  }
  return static_cast<int64_t>(bytes);
}

// Rows of the table that are looked up, and where they go.
int64_t EmbeddingBytes(const Tape& tape, const Step& step) {
  const ValueId rows = step.op == "embedding" ? step.outputs[0] : step.inputs[1];
  return 2 * tape.value(rows).bytes();
}

// A transfer takes its turn on the same processors as the kernels, so its time adds to theirs.
double MemorySeconds(const Tape& tape, const Step& step, const StepCost& cost, const MachineRates& rates) {
  const double bytes = static_cast<double>(cost.bytes);
  if (step.transfer == TransferKind::kNone) return bytes / rates.memory_bytes;
  const Value& outside = tape.value(step.transfer == TransferKind::kPut ? WrittenBy(step) : step.inputs[0]);
  const bool disk = outside.placement == Placement::kDisk ||
                    (outside.placement == Placement::kStore && !tape.store().OnHost(tape.store().entry(outside.store)));
  return bytes / 2 / (disk ? rates.disk_bytes : rates.copy_bytes);
}

}  // namespace

StepCost CostOf(const Tape& tape, const Step& step, const CostContext& context) {
  StepCost cost;
  if (step.transfer == TransferKind::kWait) return cost;
  if (step.op == "embedding" || step.op == "embedding_backward") {
    cost.bytes = EmbeddingBytes(tape, step);
    return cost;
  }
  if (const ValueId state = FetchedStateOf(tape, step); state != kNoValue) {
    cost.bytes = BytesOfPart(tape, step, state);
    return cost;
  }
  for (ValueId id : step.inputs) cost.bytes += BytesOf(tape, id);
  for (ValueId id : step.outputs) cost.bytes += BytesOf(tape, id);
  const auto formula = Formulas().find(step.op);
  if (formula == Formulas().end()) return cost;
  const double keys =
      formula->second.unit == Unit::kAttention ? MeanKeys(context, tape.value(step.inputs[0]).rows, step.layer) : 0;
  cost.unit = formula->second.unit;
  cost.flops = formula->second.flops({tape, step}, keys);
  return cost;
}

void TapeTime::Add(const TapeTime& other, double times) {
  seconds += times * other.seconds;
  compute_seconds += times * other.compute_seconds;
  flops += times * other.flops;
  bytes += times * other.bytes;
  for (const auto& [op, op_seconds] : other.by_op) {
    const auto at =
        std::find_if(by_op.begin(), by_op.end(), [&op = op](const auto& entry) { return entry.first == op; });
    if (at != by_op.end()) {
      at->second += times * op_seconds;
    } else {
      by_op.emplace_back(op, times * op_seconds);
    }
  }
  std::stable_sort(by_op.begin(), by_op.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
}

TapeTime PredictTime(const Tape& tape, const CostContext& context, const MachineRates& rates) {
  TapeTime time;
  std::map<std::string_view, double> by_op;
  const bool bf16 = context.compute == Compute::kBF16;
  const double matmul = bf16 ? rates.bf16_flops : rates.f32_flops;
  const double attention = bf16 ? rates.attention_bf16_flops : rates.attention_f32_flops;
  for (const Step& step : tape.steps()) {
    const StepCost cost = CostOf(tape, step, context);
    const double compute = cost.flops / (cost.unit == Unit::kAttention ? attention : matmul);
    const double memory = MemorySeconds(tape, step, cost, rates);
    const double seconds = std::max(compute, memory);
    time.seconds += seconds;
    if (compute >= memory) time.compute_seconds += seconds;
    time.flops += cost.flops;
    time.bytes += static_cast<double>(cost.bytes);
    by_op[step.op] += seconds;
  }
  for (const auto& [op, seconds] : by_op) time.by_op.emplace_back(std::string(op), seconds);
  std::stable_sort(time.by_op.begin(), time.by_op.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  return time;
}

}  // namespace thimble
