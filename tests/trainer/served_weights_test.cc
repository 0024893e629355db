// Training for a format: gradients are those at the served weights, straight through; the same bits under every memory
// policy; memory as planned.
#include "trainer/served_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "ops/parallel.h"
#include "ops/quantize_blocks.h"
#include "tests/trainer/tiny_model.h"
#include "trainer/generator.h"

namespace thimble {
namespace {

constexpr int64_t kTokens = 3 * 256 + 40;

DecoderConfig BlockConfig() {
  DecoderConfig config = TinyConfig();
  config.intermediate_dim = 64;
  return config;
}

class ServedModel {
 public:
  explicit ServedModel(const AdapterOptions& adapter, std::optional<Format> format,
                       ActivationGrid activations = ActivationGrid::kNone, bool tied = false) {
    DecoderConfig config = BlockConfig();
    config.tie_embeddings = tied;
    auto declared = DeclareDecoder(config, adapter, adapter.rank == 0, Compute::kF32, PlainF32, &store_);
    EXPECT_TRUE(declared.ok()) << declared.status();
    decoder_ = *std::move(declared);
    if (format) {
      ServedOptions options;
      options.format_of = [format](const std::string&, int64_t, int64_t) { return ServedFormat{*format}; };
      options.activations = activations;
      DeclareServed(options, &decoder_, &store_);
    }
    DeclareOptimizerState(OptimizerOptions(), &store_);
    store_.Allocate();
    for (StoreId id = 0; id < static_cast<StoreId>(store_.size()); ++id) {
      const StoreEntry& entry = store_.entry(id);
      if (entry.category != Category::kWeights && entry.category != Category::kParameters) continue;
      auto values = std::make_shared<std::vector<float>>(entry.rows * entry.cols);
      const Vector random(values->data(), static_cast<int64_t>(values->size()));
      RandomNormal(5, static_cast<uint64_t>(id), 0, absl::StrContains(entry.name, "norm") ? 1.0f : 0.0f, 0.1f, random);
      if (entry.view.data != nullptr) {
        std::copy_n(random.data, random.size, store_.vector(id).data);
      } else {
        EXPECT_TRUE(store_.Bind(id, WeightView(random.data, entry.rows, entry.cols), values).ok());
      }
    }
  }

  Engine MakeEngine(const SavePlan& plan = SavePolicy::kKeep, int64_t tile = 0, Placement idle = Placement::kActivation,
                    bool unserved = false) {
    EngineOptions options;
    options.activations = plan;
    options.max_tokens = kTokens;
    options.sequence_tile = tile;
    options.idle_tier = idle;
    options.trains_unserved = unserved;
    return Engine(&decoder_, &store_, options);
  }

  Store& store() { return store_; }
  const Decoder& decoder() const { return decoder_; }

 private:
  Store store_;
  Decoder decoder_;
};

Batch LongBatch() { return Packed({RandomSample(500, 1, 67), RandomSample(kTokens - 500, 2, 67)}); }

// Every matrix of `to` becomes what `from` serves.
void CopyServed(ServedModel* from, ServedModel* to) {
  Store& store = from->store();
  for (StoreId id = 0; id < static_cast<StoreId>(store.size()); ++id) {
    const StoreId served = ServedOf(from->decoder(), id);
    if (served < 0) continue;
    const Matrix values = to->store().matrix(to->store().Find(store.entry(id).name));
    for (int64_t r = 0; r < values.rows; ++r) DecodeRow(store.entry(served).view, r, 0, values.cols, values.row(r));
  }
}

TEST(ServedWeightsTest, WholeModelsGetTheGradientsAtTheServedWeights) {
  const Batch batch = LongBatch();
  for (const Format format : {Format::kQ8_0, Format::kQ4_0, Format::kQ5_1, Format::kMXFP4, Format::kF16}) {
    for (const bool tied : {false, true}) {
      ServedModel model(AdapterOptions(), format, ActivationGrid::kNone, tied);
      ServedModel plain(AdapterOptions(), std::nullopt, ActivationGrid::kNone, tied);
      Engine engine = model.MakeEngine(), reference = plain.MakeEngine();
      double loss = 0, expected_loss = 0;
      const std::vector<float> found = GradientsOf(&engine, {batch}, &loss);
      CopyServed(&model, &plain);
      EXPECT_EQ(found, GradientsOf(&reference, {batch}, &expected_loss)) << InfoOf(format).name;
      EXPECT_EQ(loss, expected_loss);
      EXPECT_EQ(engine.Evaluate(batch, nullptr), reference.Evaluate(batch, nullptr));
    }
  }
}

TEST(ServedWeightsTest, AdaptersGetTheirShareOfThatGradient) {
  const Batch batch = LongBatch();
  ServedModel model(TinyAdapter(), Format::kQ4_0);
  ServedModel whole(AdapterOptions(), std::nullopt);
  Engine engine = model.MakeEngine(), reference = whole.MakeEngine();
  double loss = 0, expected_loss = 0;
  GradientsOf(&engine, {batch}, &loss);
  CopyServed(&model, &whole);
  for (const char* norm : {"model.norm.weight"}) {
    const Vector to = whole.store().vector(whole.store().Find(norm)),
                 from = model.store().vector(model.store().Find(norm));
    std::copy_n(from.data, from.size, to.data);
  }
  for (const LayerWeights& layer : model.decoder().layers) {
    for (const StoreId id : {layer.input_norm, layer.post_attention_norm}) {
      const StoreId other = whole.store().Find(model.store().entry(id).name);
      std::copy_n(model.store().vector(id).data, model.store().vector(id).size, whole.store().vector(other).data);
    }
  }
  GradientsOf(&reference, {batch}, &expected_loss);
  EXPECT_EQ(loss, expected_loss);
  for (const LayerWeights& layer : model.decoder().layers) {
    for (const LinearWeights* linear : layer.Linears()) {
      const Store& store = model.store();
      const StoreId weight = whole.store().Find(linear->name + ".weight");
      const Matrix g = whole.store().matrix(whole.store().entry(weight).gradient);
      const Matrix a = store.matrix(linear->lora_a), b = store.matrix(linear->lora_b);
      const Matrix da = store.matrix(store.entry(linear->lora_a).gradient);
      const Matrix db = store.matrix(store.entry(linear->lora_b).gradient);
      double largest = 0;
      for (int64_t i = 0; i < g.rows * g.cols; ++i) largest = std::max(largest, std::fabs(double{g.data[i]}));
      for (int64_t r = 0; r < a.rows; ++r) {
        for (int64_t i = 0; i < g.cols; ++i) {
          double sum = 0;
          for (int64_t o = 0; o < g.rows; ++o) sum += double{b(o, r)} * g(o, i);
          ASSERT_NEAR(da(r, i), linear->lora_scale * sum, 1e-5 * largest) << linear->name;
        }
        for (int64_t o = 0; o < g.rows; ++o) {
          double sum = 0;
          for (int64_t i = 0; i < g.cols; ++i) sum += double{a(r, i)} * g(o, i);
          ASSERT_NEAR(db(o, r), linear->lora_scale * sum, 1e-5 * largest) << linear->name;
        }
      }
    }
  }
}

TEST(ServedWeightsTest, RoundedActivationsPassGradientsThrough) {
  const Batch batch = LongBatch();
  for (const ActivationGrid grid : {ActivationGrid::kInt8, ActivationGrid::kE4M3}) {
    ServedModel model(AdapterOptions(), Format::kQ8_0, grid), exact(AdapterOptions(), Format::kQ8_0);
    Engine engine = model.MakeEngine(), reference = exact.MakeEngine();
    double loss = 0, exact_loss = 0;
    const std::vector<float> found = GradientsOf(&engine, {batch}, &loss);
    const std::vector<float> expected = GradientsOf(&reference, {batch}, &exact_loss);
    EXPECT_NE(loss, exact_loss);
    EXPECT_NEAR(loss, exact_loss, 1e-2 * exact_loss);
    double product = 0, squares = 0, expected_squares = 0;
    for (size_t i = 0; i < found.size(); ++i) {
      product += double{found[i]} * expected[i];
      squares += double{found[i]} * found[i];
      expected_squares += double{expected[i]} * expected[i];
    }
    EXPECT_GT(product / std::sqrt(squares * expected_squares), 0.99);
    EXPECT_NEAR(std::sqrt(squares / expected_squares), 1, 0.05);
  }
}

TEST(ServedWeightsTest, MemoryPoliciesAndThreadsChangeNoBit) {
  const Batch batch = LongBatch();
  const int threads = NumThreads();
  for (const bool adapter : {false, true}) {
    ServedModel model(adapter ? TinyAdapter() : AdapterOptions(), Format::kQ4_0, ActivationGrid::kInt8);
    SetNumThreads(1);
    Engine plain = model.MakeEngine();
    double expected_loss = 0;
    const std::vector<float> expected = GradientsOf(&plain, {batch}, &expected_loss);
    const auto check = [&](const SavePlan& plan, int64_t tile, Placement idle) {
      model.store().SetServedIsOld(true);
      Engine engine = model.MakeEngine(plan, tile, idle);
      double loss = 0;
      EXPECT_EQ(GradientsOf(&engine, {batch}, &loss), expected) << plan.Text(2) << " " << tile;
      EXPECT_EQ(loss, expected_loss);
      EXPECT_TRUE(engine.status().ok()) << engine.status();
      EXPECT_EQ(engine.arena_high_water_bytes(), engine.largest().plan.device.peak_bytes);
      EXPECT_EQ(model.store().HeldBytes(), model.store().ResidentBytes());
    };
    SetNumThreads(2);
    check(SavePolicy::kKeep, 0, Placement::kActivation);
    for (const SavePlan& plan : {SavePlan(SavePolicy::kRecompute), SavePlan(SavePolicy::kOffloadHost)}) {
      check(plan, 0, Placement::kActivation);
      // Tiles sum the gradients of norms in another order.
      if (adapter) check(plan, 256, Placement::kHost);
    }
    SetNumThreads(threads);
  }
}

TEST(ServedWeightsTest, TheBytesFollowEveryUpdate) {
  const Batch batch = LongBatch();
  ServedModel model(TinyAdapter(), Format::kQ4_0);
  Engine engine = model.MakeEngine();
  for (int64_t step = 1; step <= 2; ++step) {
    GradientsOf(&engine, {batch});
    engine.Update(0.01, step);
    engine.Evaluate(batch, nullptr);
    for (const LayerWeights& layer : model.decoder().layers) {
      for (const LinearWeights* linear : layer.Linears()) {
        const Store& store = model.store();
        const WeightView& w = store.entry(linear->weight).view;
        const Matrix a = store.matrix(linear->lora_a), b = store.matrix(linear->lora_b);
        std::vector<float> merged(w.rows * w.cols);
        for (int64_t o = 0; o < w.rows; ++o) {
          DecodeRow(w, o, 0, w.cols, &merged[o * w.cols]);
          for (int64_t i = 0; i < w.cols; ++i) {
            float delta = 0;
            for (int64_t r = 0; r < a.rows; ++r) delta += b(o, r) * a(r, i);
            merged[o * w.cols + i] += linear->lora_scale * delta;
          }
        }
        std::vector<uint8_t> expected(StoredBytes(Format::kQ4_0, w.rows * w.cols));
        QuantizeBlocks(Format::kQ4_0, ConstVector(merged.data(), w.rows * w.cols), expected.data());
        EXPECT_EQ(std::memcmp(expected.data(), store.entry(linear->served).view.data, expected.size()), 0)
            << linear->name;
      }
    }
  }
}

TEST(ServedWeightsTest, BeforeItsFirstStepItTrainsAsWithout) {
  const Batch batch = LongBatch();
  ServedModel model(AdapterOptions(), Format::kQ4_0), plain(AdapterOptions(), std::nullopt);
  Engine engine = model.MakeEngine(SavePolicy::kRecompute, 0, Placement::kActivation, /*unserved=*/true);
  Engine reference = plain.MakeEngine();
  engine.TrainUnserved(true);
  EXPECT_EQ(GradientsOf(&engine, {batch}), GradientsOf(&reference, {batch}));
  EXPECT_NE(engine.Evaluate(batch, nullptr), reference.Evaluate(batch, nullptr));
  engine.TrainUnserved(false);
  EXPECT_NE(GradientsOf(&engine, {batch}), GradientsOf(&reference, {batch}));
}

TEST(ServedWeightsTest, AGeneratorSpeaksWithTheServedWeights) {
  ServedModel model(TinyAdapter(), Format::kQ4_0);
  Generator generator(&model.decoder(), &model.store(), 32);
  GenerateOptions options;
  options.max_new_tokens = 8;
  const Generated answer = generator.Generate({1, 5, 9}, options, nullptr);
  ASSERT_TRUE(generator.status().ok()) << generator.status();
  // The same tokens and probabilities as from hidden states of an evaluation.
  Engine engine = model.MakeEngine();
  Batch batch = RandomSample(3 + static_cast<int64_t>(answer.tokens.size()), 1, 67);
  batch.tokens = {1, 5, 9};
  batch.tokens.insert(batch.tokens.end(), answer.tokens.begin(), answer.tokens.end());
  const std::vector<float> logits =
      LogitsOf(engine.Hidden(batch), model.store().entry(model.decoder().EvaluatedHead()).view);
  for (size_t i = 0; i < answer.tokens.size(); ++i) {
    const float* z = &logits[(2 + i) * 67];
    double sum = 0;
    for (int v = 0; v < 67; ++v) sum += std::exp(double{z[v]});
    EXPECT_NEAR(answer.logprobs[i], z[answer.tokens[i]] - std::log(sum), 1e-4);
    EXPECT_EQ(std::max_element(z, z + 67) - z, answer.tokens[i]);
  }
}

}  // namespace
}  // namespace thimble
