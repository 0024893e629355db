// Offloaded and recomputed values: the same bits, less of the arena, and tiers as large as planned.
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "ops/parallel.h"
#include "ops/quantize_4bit.h"
#include "tests/trainer/tiny_model.h"
#include "trainer/engine.h"
#include "trainer/tier.h"

namespace thimble {
namespace {

constexpr int64_t kTokens = 300;
constexpr int64_t kLayers = 6;

DecoderConfig DeepConfig() {
  DecoderConfig config = TinyConfig();
  config.num_layers = kLayers;
  config.windows.assign(kLayers, 0);
  config.windows[1] = 70;
  return config;
}

SavePlan Plan(SaveAction inner, SaveAction boundary) { return SavePlan(LayerSavePlan{inner, boundary}); }

SavePlan ByKind(SaveAction inner, SaveAction attention, SaveAction elementwise) {
  return SavePlan(LayerSavePlan{inner, SaveAction::kOffloadHost, attention, elementwise});
}

// Boundaries are kept every `span` layers only.
SavePlan Spans(int64_t span, SaveAction kept) {
  SavePlan plan = Plan(SaveAction::kRecompute, SaveAction::kRecompute);
  for (int64_t layer = span - 1; layer < kLayers; layer += span) {
    plan.SetLayer(layer, {SaveAction::kRecompute, kept});
  }
  return plan;
}

SavePlan Mixture() {
  SavePlan plan = Spans(3, SaveAction::kOffloadHost);
  plan.SetLayer(1, {SaveAction::kOffloadDisk, SaveAction::kKeep});
  plan.SetLayer(3, {SaveAction::kKeep, SaveAction::kOffloadDisk});
  return plan;
}

std::vector<SavePlan> LosslessPlans() {
  return {SavePolicy::kRecompute,
          SavePolicy::kOffloadHost,
          SavePolicy::kOffloadDisk,
          Plan(SaveAction::kRecompute, SaveAction::kOffloadHost),
          Plan(SaveAction::kRecompute, SaveAction::kOffloadDisk),
          Plan(SaveAction::kKeep, SaveAction::kRecompute),
          Plan(SaveAction::kOffloadHost, SaveAction::kRecompute),
          ByKind(SaveAction::kKeep, SaveAction::kKeep, SaveAction::kRecompute),
          ByKind(SaveAction::kRecompute, SaveAction::kKeep, SaveAction::kRecompute),
          ByKind(SaveAction::kRecompute, SaveAction::kOffloadDisk, SaveAction::kOffloadHost),
          ByKind(SaveAction::kOffloadHost, SaveAction::kRecompute, SaveAction::kKeep),
          Spans(2, SaveAction::kKeep),
          Spans(3, SaveAction::kOffloadHost),
          Mixture()};
}

TEST(OffloadTest, EveryPlanGivesTheBitsOfKeepAndFillsItsTiersAsPlanned) {
  const Batch batch = Packed({RandomSample(120, 1, 67), RandomSample(kTokens - 120, 2, 67)});
  for (const char* method : {"full", "lora", "dora"}) {
    const bool full = method == std::string("full");
    TinyModel model(DeepConfig(), full ? AdapterOptions() : TinyAdapter(method == std::string("dora"), 0.2));
    Engine keep = model.MakeEngine(kTokens);
    double expected_loss = 0;
    const std::vector<float> expected = GradientsOf(&keep, {batch}, &expected_loss, 3);
    for (const SavePlan& plan : LosslessPlans()) {
      for (const int threads : {1, 2}) {
        SetNumThreads(threads);
        Engine engine = model.MakeEngine(kTokens, plan);
        double loss = 0;
        const std::vector<float> found = GradientsOf(&engine, {batch}, &loss, 3);
        EXPECT_EQ(found, expected) << method << ", " << plan.Text(kLayers);
        EXPECT_EQ(loss, expected_loss);
        EXPECT_EQ(engine.arena_high_water_bytes(), engine.largest().plan.device.peak_bytes);
        for (const Placement place : {Placement::kHost, Placement::kDisk}) {
          const Tier* tier = engine.tier(place);
          EXPECT_EQ(tier == nullptr ? 0 : tier->high_water_bytes(), engine.tier_bytes(place)) << plan.Text(kLayers);
        }
      }
    }
  }
}

TEST(OffloadTest, PlansTakeLessOfTheArena) {
  TinyModel model(DeepConfig(), TinyAdapter());
  const int64_t recompute = model.MakeEngine(kTokens, SavePolicy::kRecompute).arena_bytes();
  EXPECT_LT(recompute, model.MakeEngine(kTokens, SavePolicy::kKeep).arena_bytes() / 2);
  for (const SavePlan& plan : {Spans(3, SaveAction::kKeep), Plan(SaveAction::kRecompute, SaveAction::kOffloadHost)}) {
    EXPECT_LT(model.MakeEngine(kTokens, plan).arena_bytes(), recompute) << plan.Text(kLayers);
  }
  EXPECT_LT(model.MakeEngine(kTokens, SavePolicy::kOffloadHost).arena_bytes(),
            model.MakeEngine(kTokens, SavePolicy::kKeep).arena_bytes() / 2);
  // Fewer boundaries are fewer bytes in the host tier, too.
  EXPECT_LT(
      model.MakeEngine(kTokens, Spans(3, SaveAction::kOffloadHost)).tier_bytes(Placement::kHost),
      model.MakeEngine(kTokens, Plan(SaveAction::kRecompute, SaveAction::kOffloadHost)).tier_bytes(Placement::kHost));
}

// The linear layers of `model` as bf16 or doubly quantised nf4, bound in memory or by way of the weight tier.
void BindLinears(Format format, const TinyModel& values, const Decoder& decoder, Store* store) {
  for (const LayerWeights& layer : decoder.layers) {
    for (const LinearWeights* linear : layer.Linears()) {
      const Vector floats = values.store().vector(values.store().Find(store->entry(linear->weight).name));
      const int64_t rows = store->entry(linear->weight).rows;
      const int64_t cols = store->entry(linear->weight).cols;
      if (format == Format::kNF4) {
        WeightQuantizer quantizer(Format::kNF4, rows, cols, 64, /*double_quant=*/true);
        quantizer.Push(floats);
        auto weight = std::make_shared<QuantizedWeight>(quantizer.Finish());
        const WeightView view = weight->View();
        ASSERT_TRUE(store->Bind(linear->weight, view, std::move(weight)).ok());
        continue;
      }
      auto bits = std::make_shared<std::vector<uint16_t>>(floats.size);
      for (int64_t i = 0; i < floats.size; ++i) (*bits)[i] = FloatToBF16(floats[i]);
      WeightView view = store->entry(linear->weight).view;
      view.data = bits->data();
      ASSERT_TRUE(store->Bind(linear->weight, view, std::move(bits)).ok());
    }
  }
}

TEST(OffloadTest, StreamedWeightsGiveTheSameBits) {
  TinyModel values(DeepConfig(), TinyAdapter(/*dora=*/true));
  const Batch batch = RandomSample(kTokens, 4, 67);
  for (const Format format : {Format::kBF16, Format::kNF4}) {
    const StorageOf storage = [&](const std::string&, int64_t rows, int64_t cols, bool linear) {
      const int64_t blocks = (rows * cols + 63) / 64;
      if (!linear) return WeightStorage{Format::kF32, rows * cols * 4};
      if (format == Format::kBF16) return WeightStorage{format, rows * cols * 2};
      return WeightStorage{format, (rows * cols + 1) / 2 + blocks + 1024 + (blocks + 255) / 256 * 4};
    };
    std::vector<float> expected;
    double expected_loss = 0;
    int64_t resident_bytes = 0;
    for (const bool streamed : {false, true}) {
      for (const SavePolicy policy : {SavePolicy::kKeep, SavePolicy::kRecompute, SavePolicy::kOffloadHost}) {
        Store store;
        auto decoder = DeclareDecoder(DeepConfig(), TinyAdapter(true), false, Compute::kF32, storage, &store);
        ASSERT_TRUE(decoder.ok()) << decoder.status();
        DeclareOptimizerState(OptimizerOptions(), &store);
        if (streamed) {
          StreamLinearLayers(*decoder, &store);
          StreamEmbeddings(*decoder, &store);
          auto tier = MakeDiskTier("", store.stream_bytes());
          ASSERT_TRUE(tier.ok()) << tier.status();
          store.SetWeightTier(*std::move(tier));
        } else {
          resident_bytes = store.BytesOf(Category::kWeights);
        }
        store.Allocate();
        BindLinears(format, values, *decoder, &store);
        for (StoreId id = 0; id < static_cast<StoreId>(store.size()); ++id) {
          const StoreId from = values.store().Find(store.entry(id).name);
          if (store.entry(id).view.format != Format::kF32 || from < 0) continue;
          if (store.entry(id).reader != nullptr) {
            ASSERT_TRUE(store.Bind(id, values.store().entry(from).view, nullptr).ok());
            continue;
          }
          std::copy_n(values.store().vector(from).data, values.store().vector(from).size, store.vector(id).data);
        }
        ASSERT_TRUE(InitAdapters(*decoder, &store).ok());
        EngineOptions options;
        options.activations = policy;
        options.max_tokens = kTokens;
        Engine engine(&*decoder, &store, options);
        double loss = 0;
        const std::vector<float> found = GradientsOf(&engine, {batch}, &loss);
        ASSERT_TRUE(engine.status().ok()) << engine.status();
        if (expected.empty()) {
          expected = found;
          expected_loss = loss;
        }
        EXPECT_EQ(found, expected) << InfoOf(format).name << (streamed ? " streamed" : "");
        EXPECT_EQ(loss, expected_loss);
        EXPECT_EQ(engine.Evaluate(batch, nullptr), expected_loss);
        if (!streamed) continue;
        EXPECT_LE(store.weight_tier()->high_water_bytes(), store.stream_bytes());
        EXPECT_GT(store.weight_tier()->high_water_bytes(), store.stream_bytes() - 1024);
        EXPECT_EQ(engine.arena_high_water_bytes(), engine.largest().plan.device.peak_bytes);
        EXPECT_LT(store.BytesOf(Category::kWeights), resident_bytes / 2);
      }
    }
  }
}

TEST(OffloadTest, TilesOfTheMlpGiveTheSameBitsInLessMemory) {
  constexpr int64_t kMany = 5 * 256 + 100;
  const Batch batch = Packed({RandomSample(500, 1, 67), RandomSample(kMany - 500, 2, 67)});
  for (const bool full : {false, true}) {
    TinyModel model(DeepConfig(), full ? AdapterOptions() : TinyAdapter());
    Engine whole = model.MakeEngine(kMany, SavePolicy::kRecompute);
    double expected_loss = 0;
    const std::vector<float> expected = GradientsOf(&whole, {batch}, &expected_loss);
    for (const int64_t tile : {256, 512, 1024}) {
      for (const SavePlan& plan : {SavePlan(SavePolicy::kKeep), SavePlan(SavePolicy::kRecompute),
                                   SavePlan(SavePolicy::kOffloadHost), Spans(3, SaveAction::kKeep)}) {
        EngineOptions options;
        options.activations = plan;
        options.max_tokens = kMany;
        options.mlp_tile = tile;
        Engine engine(&model.decoder(), &model.store(), options);
        double loss = 0;
        EXPECT_EQ(GradientsOf(&engine, {batch}, &loss), expected) << tile << " " << plan.Text(kLayers);
        EXPECT_EQ(loss, expected_loss);
        EXPECT_EQ(engine.arena_high_water_bytes(), engine.largest().plan.device.peak_bytes);
        if (!full && plan == SavePlan(SavePolicy::kRecompute)) {
          EXPECT_LT(engine.arena_bytes(), whole.arena_bytes());
        }
      }
    }
  }
}

TEST(OffloadTest, TextNamesRangesOfLayers) {
  EXPECT_EQ(SavePlan(SavePolicy::kRecompute).Text(4), "recompute");
  EXPECT_EQ(Plan(SaveAction::kRecompute, SaveAction::kOffloadDisk).Text(4), "recompute/offload_disk");
  SavePlan plan = SavePolicy::kKeep;
  plan.SetLayer(2, {SaveAction::kRecompute, SaveAction::kKeep});
  EXPECT_EQ(plan.Text(6), "0-1 keep; 2 recompute; 3-5 keep");
  EXPECT_EQ(ByKind(SaveAction::kRecompute, SaveAction::kKeep, SaveAction::kRecompute).Text(4),
            "recompute/offload_host attention=keep");
}

TEST(OffloadTest, SpillFileLeavesNothingBehindAndErrorsNameTheFolder) {
  TempFolder folder;
  {
    auto tier = MakeDiskTier(folder.path(), 1 << 20);
    ASSERT_TRUE(tier.ok()) << tier.status();
    std::vector<char> bytes(1000, 'x'), back(1000);
    const Tier::Ticket put = (*tier)->Put(bytes.data(), (1 << 20) - 1000, 1000);
    const Tier::Ticket get = (*tier)->Get((1 << 20) - 1000, back.data(), 1000);
    EXPECT_TRUE((*tier)->Wait(put).ok());
    EXPECT_TRUE((*tier)->Wait(get).ok());
    EXPECT_EQ(bytes, back);
    EXPECT_EQ((*tier)->high_water_bytes(), 1 << 20);
    EXPECT_TRUE(std::filesystem::is_empty(folder.path())) << "the file has no name";
  }
  const absl::Status missing = MakeDiskTier(folder / "absent", 10).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_NE(std::string(missing.message()).find(folder / "absent"), std::string::npos);
  const absl::Status full = MakeDiskTier(folder.path(), int64_t{1} << 60).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted) << full;

  TinyModel model(DeepConfig(), TinyAdapter());
  EngineOptions options;
  options.activations = SavePolicy::kOffloadDisk;
  options.max_tokens = kTokens;
  options.spill_folder = folder / "absent";
  Engine engine(&model.decoder(), &model.store(), options);
  EXPECT_EQ(engine.Prepare().code(), absl::StatusCode::kNotFound);
}

// Fails from the third transfer on.
class TornTier : public Tier {
 public:
  TornTier() : Tier("torn", 1 << 20, Mode::kBeside) {}
  ~TornTier() override { Stop(); }
  int calls = 0;

 private:
  absl::Status Write(const void*, int64_t, int64_t) override { return Next(); }
  absl::Status Read(int64_t, void*, int64_t) override { return Next(); }
  absl::Status Next() { return ++calls < 3 ? absl::OkStatus() : absl::UnavailableError("torn away"); }
};

TEST(OffloadTest, AFailedTransferStopsTheRestAndIsReported) {
  TornTier tier;
  char bytes[8] = {};
  EXPECT_TRUE(tier.Wait(tier.Put(bytes, 0, 8)).ok());
  EXPECT_TRUE(tier.Wait(tier.Get(0, bytes, 8)).ok());
  EXPECT_EQ(tier.Wait(tier.Put(bytes, 0, 8)).message(), "torn away");
  EXPECT_EQ(tier.Wait(tier.Get(0, bytes, 8)).message(), "torn away");
  EXPECT_EQ(tier.calls, 3) << "nothing is tried after a failure";
}

}  // namespace
}  // namespace thimble
