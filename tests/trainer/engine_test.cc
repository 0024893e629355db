// The engine on a tiny model: accumulation, packing, padding, masks, dropout, memory and threads.
#include "trainer/engine.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "ops/parallel.h"
#include "ops/quantize_4bit.h"
#include "tests/trainer/golden_model.h"
#include "tests/trainer/tiny_model.h"

namespace thimble {
namespace {

constexpr int64_t kVocab = 67;

class EngineTest : public testing::Test {
 protected:
  void TearDown() override { SetNumThreads(2); }
};

std::vector<Batch> EightSamples() {
  std::vector<Batch> samples;
  for (const int64_t length : {9, 17, 5, 30, 12, 2, 23, 8}) {
    samples.push_back(RandomSample(length, 100 + samples.size(), kVocab));
  }
  return samples;
}

// The eight samples in micro-batches of `count`.
std::vector<Batch> MicroBatches(int64_t count) {
  const std::vector<Batch> samples = EightSamples();
  std::vector<Batch> batches;
  for (size_t i = 0; i < samples.size(); i += count) {
    batches.push_back(Packed({samples.begin() + i, samples.begin() + i + count}));
  }
  return batches;
}

TEST_F(EngineTest, AccumulationGivesTheGradientsOfOneBatch) {
  for (const bool full : {true, false}) {
    TinyModel model(TinyConfig(), full ? AdapterOptions() : TinyAdapter());
    Engine engine = model.MakeEngine(128);
    double whole_loss = 0;
    const std::vector<float> whole = GradientsOf(&engine, MicroBatches(8), &whole_loss);
    EXPECT_GT(*std::max_element(whole.begin(), whole.end()), 1e-4f);
    for (const int64_t count : {4, 2, 1}) {
      double loss = 0;
      const std::vector<float> split = GradientsOf(&engine, MicroBatches(count), &loss);
      EXPECT_LT(RelativeDifference(whole, split.data()), 1e-5) << count << " samples a micro-batch, full " << full;
      EXPECT_NEAR(loss, whole_loss, 1e-5 * whole_loss);
      EXPECT_EQ(split, GradientsOf(&engine, MicroBatches(count))) << "the same split must give the same bits";
    }
  }
}

TEST_F(EngineTest, PackedSamplesDoNotSeeEachOther) {
  for (const bool windowed : {false, true}) {
    DecoderConfig config = TinyConfig();
    if (windowed) config.windows = {6, 0};
    TinyModel model(config);
    Engine engine = model.MakeEngine(128);
    const std::vector<Batch> samples = EightSamples();
    const Batch packed = Packed(samples);
    const ConstMatrix hidden = engine.Hidden(packed);
    const std::vector<float> together(hidden.data, hidden.data + hidden.rows * hidden.cols);
    std::vector<float> losses;
    const double loss = engine.Evaluate(packed, &losses);
    std::vector<float> alone;
    std::vector<float> losses_alone;
    double loss_alone = 0;
    for (const Batch& sample : samples) {
      const ConstMatrix one = engine.Hidden(sample);
      alone.insert(alone.end(), one.data, one.data + one.rows * one.cols);
      std::vector<float> rows;
      loss_alone += engine.Evaluate(sample, &rows);
      losses_alone.insert(losses_alone.end(), rows.begin(), rows.end());
    }
    EXPECT_EQ(together, alone) << "bit for bit";
    EXPECT_EQ(losses, losses_alone);
    EXPECT_NEAR(loss, loss_alone, 1e-9 * loss);
  }
}

TEST_F(EngineTest, PaddingRowsChangeNothing) {
  for (const bool full : {true, false}) {
    const Batch batch = RandomSample(40, 7, kVocab);
    TinyModel model(TinyConfig(), full ? AdapterOptions() : TinyAdapter());
    Engine exact = model.MakeEngine(40);
    double exact_loss = 0;
    const std::vector<float> expected = GradientsOf(&exact, {batch}, &exact_loss);
    Engine padded = model.MakeEngine(256);
    ASSERT_GT(BucketTokens(40, 256), 40);
    double loss = 0;
    const std::vector<float> found = GradientsOf(&padded, {batch}, &loss);
    EXPECT_EQ(loss, exact_loss);
    EXPECT_LT(RelativeDifference(expected, found.data()), 1e-6);
  }
}

TEST_F(EngineTest, MicroBatchWithoutTargetsGivesZeroNeverNaN) {
  for (const bool full : {true, false}) {
    TinyModel model(TinyConfig(), full ? AdapterOptions() : TinyAdapter());
    for (const SavePolicy policy : {SavePolicy::kKeep, SavePolicy::kRecompute}) {
      Engine engine = model.MakeEngine(64, policy, {.label_smoothing = 0.1f, .z_loss = 1e-3f});
      Batch batch = RandomSample(20, 3, kVocab);
      std::fill(batch.targets.begin(), batch.targets.end(), -100);
      batch.num_targets = 0;
      double loss = 1;
      const std::vector<float> gradients = GradientsOf(&engine, {batch}, &loss);
      EXPECT_EQ(loss, 0);
      EXPECT_TRUE(std::all_of(gradients.begin(), gradients.end(), [](float g) { return g == 0; }));
      EXPECT_EQ(engine.Evaluate(batch, nullptr), 0);
      // Beside a batch with targets it changes nothing.
      const Batch other = RandomSample(20, 4, kVocab);
      EXPECT_EQ(GradientsOf(&engine, {other}), GradientsOf(&engine, {batch, other}));
    }
  }
}

TEST_F(EngineTest, ArenaHighWaterMarkIsThePlannedPeak) {
  for (const int64_t tokens : {1, 37, 64, 200}) {
    for (const SavePolicy policy : {SavePolicy::kKeep, SavePolicy::kRecompute}) {
      TinyModel model(TinyConfig(), TinyAdapter(/*dora=*/true, /*dropout=*/0.1));
      Engine engine = model.MakeEngine(tokens, policy);
      EXPECT_EQ(engine.arena_high_water_bytes(), 0);
      GradientsOf(&engine, {RandomSample(tokens, 1, kVocab)});
      EXPECT_EQ(engine.arena_high_water_bytes(), engine.largest().plan.device.peak_bytes) << tokens;
      engine.Update(1e-3, 1);
      engine.Evaluate(RandomSample(tokens, 2, kVocab), nullptr);
      EXPECT_LE(engine.arena_high_water_bytes(), engine.arena_bytes()) << tokens;
      EXPECT_LE(engine.arena_bytes(), engine.largest().plan.device.peak_bytes * 2);
    }
  }
}

TEST_F(EngineTest, BucketsCoverEveryLength) {
  for (const int64_t largest : {1, 63, 64, 65, 1000, 4096, 5000}) {
    int64_t before = 0;
    int shapes = 0;
    for (int64_t tokens = 1; tokens <= largest; ++tokens) {
      const int64_t bucket = BucketTokens(tokens, largest);
      ASSERT_GE(bucket, tokens);
      ASSERT_LE(bucket, largest);
      ASSERT_GE(bucket, before);
      shapes += bucket != before ? 1 : 0;
      before = bucket;
    }
    EXPECT_LE(shapes, 17) << largest;
  }
}

TEST_F(EngineTest, DropoutRepeatsWithItsCounterAndPolicyAndRestsInEvaluation) {
  for (const bool dora : {false, true}) {
    const Batch batch = RandomSample(50, 9, kVocab);
    const auto run = [&](SavePolicy policy, int threads, uint64_t counter) {
      SetNumThreads(threads);
      TinyModel model(TinyConfig(), TinyAdapter(dora, 0.3));
      Engine engine = model.MakeEngine(64, policy);
      return GradientsOf(&engine, {batch}, nullptr, counter);
    };
    const std::vector<float> keep = run(SavePolicy::kKeep, 1, 5);
    EXPECT_EQ(keep, run(SavePolicy::kRecompute, 1, 5));
    EXPECT_EQ(keep, run(SavePolicy::kRecompute, 2, 5));
    EXPECT_NE(keep, run(SavePolicy::kKeep, 1, 6)) << "another counter, another mask";
    SetNumThreads(2);

    TinyModel with(TinyConfig(), TinyAdapter(dora, 0.3));
    TinyModel without(TinyConfig(), TinyAdapter(dora, 0));
    Engine with_engine = with.MakeEngine(64);
    Engine without_engine = without.MakeEngine(64);
    EXPECT_NE(keep, GradientsOf(&without_engine, {batch}));
    std::vector<float> a;
    std::vector<float> b;
    with_engine.Evaluate(batch, &a);
    without_engine.Evaluate(batch, &b);
    if (dora) {
      EXPECT_LT(RelativeDifference(b, a.data()), 1e-6);
    } else {
      EXPECT_EQ(a, b);
    }
  }
}

TEST_F(EngineTest, SmoothingAndZLossAreForTrainingAlone) {
  const Batch batch = RandomSample(30, 13, kVocab);
  for (const bool full : {true, false}) {
    TinyModel model(TinyConfig(), full ? AdapterOptions() : TinyAdapter());
    Engine plain = model.MakeEngine(64);
    Engine smooth = model.MakeEngine(64, SavePolicy::kKeep, {.label_smoothing = 0.2f});
    Engine z = model.MakeEngine(64, SavePolicy::kKeep, {.z_loss = 0.01f});
    double plain_loss = 0;
    double smooth_loss = 0;
    double z_loss = 0;
    const std::vector<float> gradients = GradientsOf(&plain, {batch}, &plain_loss);
    EXPECT_NE(gradients, GradientsOf(&smooth, {batch}, &smooth_loss));
    EXPECT_NE(gradients, GradientsOf(&z, {batch}, &z_loss));
    EXPECT_NE(plain_loss, smooth_loss);
    EXPECT_GT(z_loss, plain_loss);
    const double evaluated = plain.Evaluate(batch, nullptr);
    EXPECT_NEAR(evaluated, plain_loss, 1e-5 * plain_loss);
    EXPECT_EQ(evaluated, smooth.Evaluate(batch, nullptr));
    EXPECT_EQ(evaluated, z.Evaluate(batch, nullptr));
  }
}

// Quantises every linear layer's weight of `model` in place of the f32 values, and writes what its codes stand for
// into `decoded`.
void QuantiseBase(TinyModel* model, TinyModel* decoded, std::vector<QuantizedWeight>* owned) {
  owned->reserve(model->decoder().layers.size() * LinearNames().size());
  for (const LayerWeights& layer : model->decoder().layers) {
    for (const LinearWeights* linear : layer.Linears()) {
      const Vector values = model->store().vector(linear->weight);
      QuantizedWeight weight;
      weight.rows = model->store().entry(linear->weight).rows;
      weight.cols = model->store().entry(linear->weight).cols;
      weight.codes.resize((values.size + 1) / 2);
      weight.absmax.resize((values.size + 63) / 64);
      const Vector absmax(weight.absmax.data(), std::ssize(weight.absmax));
      ASSERT_EQ(Quantize4Bit(Format::kNF4, values, 64, weight.codes.data(), absmax), -1);
      owned->push_back(std::move(weight));
      const WeightView view = owned->back().View();
      DecodeRow(view, 0, 0, values.size, decoded->store().vector(linear->weight).data);
      ASSERT_TRUE(model->store().Bind(linear->weight, view, nullptr).ok());
    }
  }
}

TEST_F(EngineTest, Nf4BaseGivesTheGradientsOfItsDecodedWeights) {
  for (const bool dora : {false, true}) {
    TinyModel quantised(TinyConfig(), TinyAdapter(dora));
    TinyModel decoded(TinyConfig(), TinyAdapter(dora));
    std::vector<QuantizedWeight> owned;
    QuantiseBase(&quantised, &decoded, &owned);
    const Batch batch = RandomSample(60, 21, kVocab);
    Engine a = quantised.MakeEngine(64, SavePolicy::kRecompute);
    Engine b = decoded.MakeEngine(64);
    double loss_a = 0;
    double loss_b = 0;
    const std::vector<float> gradients_a = GradientsOf(&a, {batch}, &loss_a);
    const std::vector<float> gradients_b = GradientsOf(&b, {batch}, &loss_b);
    EXPECT_NEAR(loss_a, loss_b, 1e-6 * loss_b);
    EXPECT_LT(RelativeDifference(gradients_b, gradients_a.data()), 1e-6);
    // And they are not those of the weights before quantisation.
    TinyModel original(TinyConfig(), TinyAdapter(dora));
    Engine c = original.MakeEngine(64);
    EXPECT_GT(RelativeDifference(GradientsOf(&c, {batch}), gradients_a.data()), 1e-3);
  }
}

TEST_F(EngineTest, UpdateLeavesEverythingAloneWhenAGradientIsNotFinite) {
  TinyModel model(TinyConfig(), TinyAdapter());
  Engine engine = model.MakeEngine(64);
  GradientsOf(&engine, {RandomSample(20, 1, kVocab)});
  const StoreId first = model.store().Trainable().front();
  const auto values = [&](StoreId id) {
    const Vector v = model.store().vector(id);
    return std::vector<float>(v.data, v.data + v.size);
  };
  model.store().vector(model.store().entry(first).gradient)[0] = std::nanf("");
  const std::vector<float> before = values(first);
  EXPECT_FALSE(std::isfinite(engine.Update(1e-3, 1)));
  EXPECT_EQ(before, values(first));
  GradientsOf(&engine, {RandomSample(20, 1, kVocab)});
  EXPECT_GT(engine.Update(1e-3, 1), 0);
  EXPECT_NE(before, values(first));
}

}  // namespace
}  // namespace thimble
