// Training against a teacher: gradients by finite differences, the same bits under every memory policy, memory as
// planned, a teacher that is only looked at.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "ops/parallel.h"
#include "tests/trainer/tiny_model.h"
#include "trainer/engine.h"
#include "trainer/tier.h"

namespace thimble {
namespace {

constexpr int64_t kTokens = 3 * 256 + 40;

// A student and a wider teacher of another depth in one store.
class Taught {
 public:
  explicit Taught(const AdapterOptions& adapter, bool streamed = false, bool ternary = false) {
    DecoderConfig config = TinyConfig();
    config.ternary = config.sub_norms = ternary;
    auto student = DeclareDecoder(config, adapter, adapter.rank == 0, Compute::kF32, PlainF32, &store_);
    EXPECT_TRUE(student.ok()) << student.status();
    decoder_ = *std::move(student);
    DecoderConfig wider = TinyConfig();
    wider.hidden_dim = 48;
    wider.num_layers = 3;
    wider.num_kv_heads = 4;
    wider.windows.assign(3, 0);
    wider.ternary = wider.sub_norms = ternary;
    auto teacher =
        DeclareDecoder(wider, AdapterOptions(), false, Compute::kF32, PlainF32, &store_, false, kTeacherPrefix);
    EXPECT_TRUE(teacher.ok()) << teacher.status();
    if (streamed) {
      StreamLinearLayers(*teacher, &store_);
      StreamEmbeddings(*teacher, &store_);
      store_.StreamFromHost();
      store_.SetWeightTier(*MakeHostTier(store_.stream_bytes()));
    }
    decoder_.teacher = std::make_shared<const Decoder>(*std::move(teacher));
    DeclareOptimizerState(OptimizerOptions(), &store_);
    store_.Allocate();
    for (StoreId id = 0; id < static_cast<StoreId>(store_.size()); ++id) Fill(id);
  }

  Engine MakeEngine(const SavePlan& plan, int64_t tile = 0, float weight = 0.7f,
                    Placement idle = Placement::kActivation,
                    DivergenceDirection direction = DivergenceDirection::kSymmetric) {
    EngineOptions options;
    options.activations = plan;
    options.max_tokens = kTokens;
    options.sequence_tile = tile;
    options.idle_tier = idle;
    options.distillation.weight = weight;
    options.distillation.temperature = 1.5f;
    options.distillation.direction = direction;
    return Engine(&decoder_, &store_, options);
  }

  Store& store() { return store_; }
  const Decoder& decoder() const { return decoder_; }

 private:
  void Fill(StoreId id) {
    const StoreEntry& entry = store_.entry(id);
    if (entry.category != Category::kWeights && entry.category != Category::kParameters) return;
    const bool near_one = absl::StrContains(entry.name, "norm");
    auto values = std::make_shared<std::vector<float>>(entry.rows * entry.cols);
    const Vector random(values->data(), static_cast<int64_t>(values->size()));
    RandomNormal(5, static_cast<uint64_t>(id), 0, near_one ? 1.0f : 0.0f, 0.1f, random);
    if (entry.slot < 0 && entry.view.data == nullptr) {
      std::copy_n(random.data, random.size, store_.vector(id).data);
    } else if (entry.reader != nullptr) {
      ASSERT_TRUE(store_.WriteStreamed(id, 0, random.data, random.size * 4).ok());
    } else {
      ASSERT_TRUE(store_.Bind(id, WeightView(random.data, entry.rows, entry.cols), values).ok());
    }
  }

  Store store_;
  Decoder decoder_;
};

Batch LongBatch() { return Packed({RandomSample(500, 1, 67), RandomSample(kTokens - 500, 2, 67)}); }

// Logarithms of softmax(h head^T / temperature), in double.
std::vector<double> LogSoftmax(const float* h, ConstMatrix head, double temperature) {
  std::vector<double> z(head.rows);
  double max = -1e30, sum = 0;
  for (int64_t v = 0; v < head.rows; ++v) {
    for (int64_t d = 0; d < head.cols; ++d) z[v] += static_cast<double>(h[d]) * head(v, d);
    z[v] /= temperature;
    max = std::max(max, z[v]);
  }
  for (const double value : z) sum += std::exp(value - max);
  for (double& value : z) value -= max + std::log(sum);
  return z;
}

// The loss by its definition, from the hidden states of both models.
double ReferenceLoss(Engine* student, Engine* teacher, const Batch& batch, double weight, double temperature,
                     DivergenceDirection direction) {
  const auto states = [&batch](Engine* engine) {
    ConstMatrix hidden;
    engine->Evaluate(batch, nullptr, &hidden);
    return hidden;
  };
  const ConstMatrix h = states(student), h_t = states(teacher);
  const ConstMatrix head = student->store().matrix(student->decoder().head);
  const ConstMatrix head_t = teacher->store().matrix(teacher->decoder().head);
  double loss = 0;
  for (int64_t t = 0; t < h.rows; ++t) {
    if (batch.targets[t] < 0) continue;
    const std::vector<double> q = LogSoftmax(h.row(t), head, temperature),
                              p = LogSoftmax(h_t.row(t), head_t, temperature);
    double forward = 0, reverse = 0;
    for (size_t v = 0; v < q.size(); ++v) {
      forward += std::exp(p[v]) * (p[v] - q[v]);
      reverse += std::exp(q[v]) * (q[v] - p[v]);
    }
    const double divergence = direction == DivergenceDirection::kForward   ? forward
                              : direction == DivergenceDirection::kReverse ? reverse
                                                                           : (forward + reverse) / 2;
    loss += weight * temperature * temperature * divergence -
            (1 - weight) * LogSoftmax(h.row(t), head, 1)[static_cast<size_t>(batch.targets[t])];
  }
  return loss;
}

TEST(DistillationTest, LossAndGradientsAreThoseOfTheDefinition) {
  for (const bool whole : {false, true}) {
    for (const DivergenceDirection direction :
         {DivergenceDirection::kForward, DivergenceDirection::kReverse, DivergenceDirection::kSymmetric}) {
      Taught model(whole ? AdapterOptions() : TinyAdapter());
      Engine engine = model.MakeEngine(SavePolicy::kKeep, 0, 0.7f, Placement::kActivation, direction);
      EngineOptions looking;
      looking.train = false;
      looking.max_tokens = kTokens;
      Engine teacher(model.decoder().teacher.get(), &model.store(), looking);
      const Batch batch = RandomSample(40, 3, 67);
      const auto reference = [&] { return ReferenceLoss(&engine, &teacher, batch, 0.7, 1.5, direction); };
      engine.ZeroGradients();
      const double loss = engine.TrainMicroStep(batch, 1, 1);
      EXPECT_NEAR(loss, reference(), 1e-5 * loss);
      Store& store = model.store();
      int checked = 0;
      for (const StoreId id : store.Trainable()) {
        // Along the gradient itself the loss rises by its squared norm.
        const ConstVector gradient = store.vector(store.entry(id).gradient);
        double squares = 0;
        for (int64_t i = 0; i < gradient.size; ++i) squares += static_cast<double>(gradient[i]) * gradient[i];
        if (squares < 0.01) continue;
        ++checked;
        const Vector values = store.vector(id);
        const std::vector<float> before(values.data, values.data + values.size);
        const double step = 2e-3 / std::sqrt(squares);
        const auto loss_at = [&](double distance) {
          for (int64_t i = 0; i < values.size; ++i) {
            values[i] = static_cast<float>(before[i] + distance * gradient[i]);
          }
          return reference();
        };
        const double rise = (loss_at(step) - loss_at(-step)) / (2 * step);
        std::copy(before.begin(), before.end(), values.data);
        EXPECT_NEAR(rise, squares, 0.01 * squares + 2e-6 / step) << store.entry(id).name;
      }
      EXPECT_GE(checked, 12);
    }
  }
}

TEST(DistillationTest, ALargeVocabularyTakesNoMemory) {
  int64_t arena[2] = {0, 0};
  for (const bool large : {false, true}) {
    Store store;
    DecoderConfig config = TinyConfig();
    config.hidden_dim = 64;
    config.vocab_size = large ? 262144 : 512;
    auto student = DeclareDecoder(config, TinyAdapter(), false, Compute::kF32, PlainF32, &store);
    ASSERT_TRUE(student.ok());
    auto teacher =
        DeclareDecoder(config, AdapterOptions(), false, Compute::kF32, PlainF32, &store, false, kTeacherPrefix);
    ASSERT_TRUE(teacher.ok());
    student->teacher = std::make_shared<const Decoder>(*std::move(teacher));
    DeclareOptimizerState(OptimizerOptions(), &store);
    EngineOptions options;
    options.max_tokens = 2048;
    const Engine engine(&*student, &store, options);
    arena[large] = engine.arena_bytes();
    const Tape& tape = engine.largest().tape;
    int steps = 0;
    for (const Step& step : tape.steps()) {
      if (step.op.rfind("linear_distillation", 0) != 0) continue;
      ++steps;
      int64_t bytes = step.scratch_bytes;
      for (const ValueId id : step.outputs) bytes += step.op == "linear_distillation" ? tape.value(id).bytes() : 0;
      EXPECT_LE(bytes, int64_t{4} << 20) << step.op;
    }
    EXPECT_EQ(steps, 2);
  }
  EXPECT_EQ(arena[0], arena[1]);
}

TEST(DistillationTest, MemoryPoliciesChangeNoBit) {
  const Batch batch = LongBatch();
  const int threads = NumThreads();
  SetNumThreads(1);
  Taught model(TinyAdapter()), streamed(TinyAdapter(), /*streamed=*/true);
  Engine plain = model.MakeEngine(SavePolicy::kKeep);
  double expected_loss = 0;
  const std::vector<float> expected = GradientsOf(&plain, {batch}, &expected_loss, 3);
  const auto check = [&](Taught* taught, const SavePlan& plan, int64_t tile, Placement idle) {
    Engine engine = taught->MakeEngine(plan, tile, 0.7f, idle);
    double loss = 0;
    EXPECT_EQ(GradientsOf(&engine, {batch}, &loss, 3), expected) << plan.Text(2) << " " << tile;
    EXPECT_EQ(loss, expected_loss);
    EXPECT_TRUE(engine.status().ok()) << engine.status();
    EXPECT_EQ(engine.arena_high_water_bytes(), engine.largest().plan.device.peak_bytes);
  };
  SetNumThreads(2);
  check(&model, SavePolicy::kKeep, 0, Placement::kActivation);
  SetNumThreads(1);
  for (const SavePlan& plan : {SavePlan(SavePolicy::kRecompute), SavePlan(SavePolicy::kOffloadHost),
                               SavePlan(LayerSavePlan{SaveAction::kRecompute, SaveAction::kRecompute})}) {
    check(&model, plan, 0, Placement::kActivation);
    check(&streamed, plan, 0, Placement::kActivation);
    check(&model, plan, 256, Placement::kHost);
    check(&streamed, plan, 256, Placement::kDisk);
  }
  SetNumThreads(threads);
}

TEST(DistillationTest, MemoryPoliciesChangeNoBitOfTernaryModels) {
  const Batch batch = LongBatch();
  Taught model(AdapterOptions(), /*streamed=*/false, /*ternary=*/true);
  Taught streamed(AdapterOptions(), /*streamed=*/true, /*ternary=*/true);
  Engine plain = model.MakeEngine(SavePolicy::kKeep);
  double expected_loss = 0;
  const std::vector<float> expected = GradientsOf(&plain, {batch}, &expected_loss, 3);
  EXPECT_GT(std::count_if(expected.begin(), expected.end(), [](float g) { return g != 0; }), 1000);
  for (const SavePlan& plan : {SavePlan(SavePolicy::kRecompute), SavePlan(SavePolicy::kOffloadHost)}) {
    for (Taught* taught : {&model, &streamed}) {
      Engine engine = taught->MakeEngine(plan, 0, 0.7f, Placement::kHost);
      double loss = 0;
      EXPECT_EQ(GradientsOf(&engine, {batch}, &loss, 3), expected) << plan.Text(2);
      EXPECT_EQ(loss, expected_loss);
      EXPECT_EQ(engine.arena_high_water_bytes(), engine.largest().plan.device.peak_bytes);
    }
  }
}

TEST(DistillationTest, WeightZeroIsCrossEntropyAndEvaluationKnowsNoTeacher) {
  const Batch batch = LongBatch();
  Taught taught(TinyAdapter());
  TinyModel alone(TinyConfig(), TinyAdapter());
  Engine mixed = taught.MakeEngine(SavePolicy::kKeep, 0, 0.0f), plain = alone.MakeEngine(kTokens);
  // The same weights: entries of the student come first in both stores, with the same seeds.
  double loss = 0, expected_loss = 0;
  const std::vector<float> found = GradientsOf(&mixed, {batch}, &loss, 3);
  const std::vector<float> expected = GradientsOf(&plain, {batch}, &expected_loss, 3);
  ASSERT_EQ(found.size(), expected.size());
  float largest = 0;
  for (const float g : expected) largest = std::max(largest, std::abs(g));
  for (size_t i = 0; i < found.size(); ++i) ASSERT_NEAR(found[i], expected[i], 1e-4f * largest) << i;
  EXPECT_NEAR(loss, expected_loss, 1e-5 * expected_loss);
  EXPECT_EQ(taught.MakeEngine(SavePolicy::kKeep).Evaluate(batch, nullptr), plain.Evaluate(batch, nullptr));
}

}  // namespace
}  // namespace thimble
