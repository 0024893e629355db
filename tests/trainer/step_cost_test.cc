// Costs of steps against closed forms, and rates that are measured once.
#include "trainer/step_cost.h"

#include <cmath>
#include <set>
#include <string>

#include "data/file.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "ops/ternary_storage.h"
#include "tests/data/test_folder.h"
#include "tests/trainer/tiny_model.h"
#include "trainer/engine.h"
#include "trainer/optimizer_state.h"

namespace thimble {
namespace {

constexpr int64_t kTokens = 48;
constexpr MachineRates kRates = {1e9, 2e9, 5e8, 1e9, 1e10};

double FlopsOf(const Tape& tape, const CostContext& context, const std::set<std::string>& ops) {
  double flops = 0;
  for (const Step& step : tape.steps()) {
    if (ops.count(std::string(step.op)) > 0) flops += CostOf(tape, step, context).flops;
  }
  return flops;
}

struct Planned {
  Store store;
  Decoder decoder;
  std::unique_ptr<Engine> engine;
};

void MakeEngine(SavePolicy policy, Planned* planned) {
  EngineOptions options;
  options.activations = policy;
  options.max_tokens = kTokens;
  DeclareOptimizerState(options.optimizer, &planned->store);
  planned->engine = std::make_unique<Engine>(&planned->decoder, &planned->store, options);
}

void Plan(const AdapterOptions& adapter, bool full, SavePolicy policy, Planned* planned) {
  auto decoder = DeclareDecoder(TinyConfig(), adapter, full, Compute::kF32, PlainF32, &planned->store);
  ASSERT_TRUE(decoder.ok()) << decoder.status();
  planned->decoder = *std::move(decoder);
  MakeEngine(policy, planned);
}

// Elements of all linear layers.
double LinearElements(const Planned& planned) {
  double elements = 0;
  for (const LayerWeights& layer : planned.decoder.layers) {
    for (const LinearWeights* linear : layer.Linears()) {
      const StoreEntry& entry = planned.store.entry(linear->weight);
      elements += static_cast<double>(entry.rows * entry.cols);
    }
  }
  return elements;
}

TEST(StepCostTest, TernaryLayersTakeAsManyOperations) {
  DecoderConfig config = TinyConfig();
  config.ternary = config.sub_norms = true;
  const auto codes = [](const std::string&, int64_t rows, int64_t cols, bool linear) {
    if (!linear) return WeightStorage{Format::kF32, rows * cols * 4};
    return WeightStorage{Format::kTernary, TernaryBytes(rows, cols)};
  };
  const CostContext context{kTokens, {}, Compute::kF32};
  for (const bool full : {true, false}) {
    Planned planned;
    auto decoder =
        DeclareDecoder(config, full ? AdapterOptions() : TinyAdapter(), full, Compute::kF32, codes, &planned.store);
    ASSERT_TRUE(decoder.ok()) << decoder.status();
    planned.decoder = *std::move(decoder);
    MakeEngine(SavePolicy::kKeep, &planned);
    const Tape& tape = planned.engine->largest().tape;
    const double products = 2 * kTokens * LinearElements(planned);
    EXPECT_EQ(FlopsOf(tape, context, {"bit_linear"}), products);
    // Of frozen layers the first takes no input gradient: its input is no parameter's result.
    EXPECT_GT(FlopsOf(tape, context, {"bit_linear_backward", "matmul_nn"}), 0.7 * products);
    EXPECT_EQ(FlopsOf(tape, context, {"matmul_tn"}), full ? products : 0);
    EXPECT_GT(PredictTime(tape, context, kRates).seconds, 0);
  }
}

TEST(StepCostTest, FullFineTuningTakesTwoOperationsAWeightAndToken) {
  Planned planned;
  Plan(AdapterOptions(), true, SavePolicy::kKeep, &planned);
  const Tape& tape = planned.engine->largest().tape;
  const CostContext context{kTokens, {}, Compute::kF32};
  const double products = 2 * kTokens * LinearElements(planned);
  EXPECT_EQ(FlopsOf(tape, context, {"matmul_nt"}), products);
  EXPECT_EQ(FlopsOf(tape, context, {"matmul_nn"}), products);
  EXPECT_EQ(FlopsOf(tape, context, {"matmul_tn"}), products);
  const DecoderConfig& c = planned.decoder.config;
  const double logits = 2.0 * kTokens * static_cast<double>(c.vocab_size * c.hidden_dim);
  EXPECT_EQ(FlopsOf(tape, context, {"linear_cross_entropy", "linear_cross_entropy_backward"}), 4 * logits);
}

TEST(StepCostTest, RecomputingTakesTheForwardProductsAgainButNotTheLast) {
  Planned keep, recompute;
  Plan(AdapterOptions(), true, SavePolicy::kKeep, &keep);
  Plan(AdapterOptions(), true, SavePolicy::kRecompute, &recompute);
  const CostContext context{kTokens, {}, Compute::kF32};
  const double once = FlopsOf(keep.engine->largest().tape, context, {"matmul_nt"});
  const double again = FlopsOf(recompute.engine->largest().tape, context, {"matmul_nt"});
  EXPECT_GT(again, 1.5 * once);
  EXPECT_LT(again, 2 * once);
  EXPECT_GT(PredictTime(recompute.engine->largest().tape, context, kRates).seconds,
            PredictTime(keep.engine->largest().tape, context, kRates).seconds);
}

TEST(StepCostTest, AttentionCountsVisiblePairs) {
  Planned planned;
  Plan(AdapterOptions(), true, SavePolicy::kKeep, &planned);
  const Tape& tape = planned.engine->largest().tape;
  const DecoderConfig& c = planned.decoder.config;
  const double width = static_cast<double>(c.num_heads * c.head_dim * c.num_layers);
  const auto pairs = [](int64_t length, int64_t window) {
    double sum = 0;
    for (int64_t i = 0; i < length; ++i) sum += static_cast<double>(window == 0 ? i + 1 : std::min(i + 1, window));
    return sum;
  };
  EXPECT_DOUBLE_EQ(FlopsOf(tape, {kTokens, {}, Compute::kF32}, {"attention"}), 4 * width * pairs(kTokens, 0));
  EXPECT_DOUBLE_EQ(FlopsOf(tape, {16, {}, Compute::kF32}, {"attention"}), 4 * width * 3 * pairs(16, 0));
  const std::vector<int64_t> windows(c.num_layers, 7);
  EXPECT_DOUBLE_EQ(FlopsOf(tape, {kTokens, windows, Compute::kF32}, {"attention_backward"}),
                   10 * width * pairs(kTokens, 7));
}

TEST(StepCostTest, AnAdapterTakesItsShare) {
  Planned planned;
  Plan(TinyAdapter(false, 0), false, SavePolicy::kKeep, &planned);
  const Tape& tape = planned.engine->largest().tape;
  const CostContext context{kTokens, {}, Compute::kF32};
  double adapters = 0;
  for (const LinearWeights* linear : planned.decoder.AdaptedLinears()) {
    for (StoreId id : {linear->lora_a, linear->lora_b}) {
      adapters += static_cast<double>(planned.store.entry(id).rows * planned.store.entry(id).cols);
    }
  }
  EXPECT_EQ(FlopsOf(tape, context, {"lora_down", "lora_up"}), 2 * kTokens * adapters);
  EXPECT_LE(FlopsOf(tape, context, {"lora_backward"}), 2 * 2 * kTokens * adapters);
  EXPECT_GT(FlopsOf(tape, context, {"lora_backward"}), 1.5 * 2 * kTokens * adapters);
  EXPECT_EQ(FlopsOf(tape, context, {"matmul_tn"}), 0) << "frozen weights have no gradient";
}

TEST(StepCostTest, TimesAddUp) {
  Planned planned;
  Plan(AdapterOptions(), true, SavePolicy::kKeep, &planned);
  const CostContext context{kTokens, {}, Compute::kF32};
  const TapeTime once = PredictTime(planned.engine->largest().tape, context, kRates);
  TapeTime thrice;
  thrice.Add(once, 3);
  EXPECT_DOUBLE_EQ(thrice.seconds, 3 * once.seconds);
  EXPECT_GE(once.seconds, once.bytes / kRates.memory_bytes);
  EXPECT_LE(once.compute_seconds, once.seconds);
  double by_op = 0;
  for (const auto& [op, seconds] : thrice.by_op) by_op += seconds;
  EXPECT_NEAR(by_op, thrice.seconds, 1e-9 * thrice.seconds);
  CostContext bf16 = context;
  bf16.compute = Compute::kBF16;
  EXPECT_LT(PredictTime(planned.engine->largest().tape, bf16, kRates).seconds, once.seconds);
  // The update reads gradient, weight and moments, and computes next to nothing.
  EXPECT_EQ(PredictTime(planned.engine->update()->tape, context, kRates).flops, 0);
  EXPECT_GT(PredictTime(planned.engine->update()->tape, context, kRates).seconds, 0);
}

class MachineRatesTest : public TestFolder {};

TEST_F(MachineRatesTest, AreMeasuredOnceAndTakenFromTheFile) {
  const std::string path = Path("cache/thimble/rates.json");
  const MachineRates measured = LoadOrMeasureRates(path);
  for (double rate : {measured.f32_flops, measured.bf16_flops, measured.attention_f32_flops,
                      measured.attention_bf16_flops, measured.memory_bytes}) {
    EXPECT_GT(rate, 1e6);
    EXPECT_TRUE(std::isfinite(rate));
  }
  nlohmann::ordered_json file = nlohmann::ordered_json::parse(*ReadFile(path));
  EXPECT_EQ(file["memory_bytes"], measured.memory_bytes);
  file["memory_bytes"] = 12345.0;
  ASSERT_TRUE(WriteFileAtomically(path, file.dump()).ok());
  EXPECT_EQ(LoadOrMeasureRates(path).memory_bytes, 12345.0);
  EXPECT_EQ(LoadOrMeasureRates(path).f32_flops, measured.f32_flops);
}

TEST_F(MachineRatesTest, OfAnotherMachineOrDamagedAreMeasuredAgain) {
  const std::string path = Path("rates.json");
  LoadOrMeasureRates(path);
  nlohmann::ordered_json file = nlohmann::ordered_json::parse(*ReadFile(path));
  file["memory_bytes"] = 12345.0;
  nlohmann::ordered_json other = file;
  other["machine"] = "an abacus";
  nlohmann::ordered_json negative = file;
  negative["f32_flops"] = -1;
  for (const std::string& text : {other.dump(), negative.dump(), std::string("{"), std::string("[]")}) {
    ASSERT_TRUE(WriteFileAtomically(path, text).ok());
    EXPECT_GT(LoadOrMeasureRates(path).memory_bytes, 1e6) << text;
  }
  EXPECT_GT(LoadOrMeasureRates("/proc/nowhere/rates.json").memory_bytes, 1e6) << "a cache that cannot be written";
}

}  // namespace
}  // namespace thimble
