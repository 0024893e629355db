// The whole decoder against transformers and peft: logits, loss, every gradient, and 20 AdamW steps.
// Files and tolerances: tests/golden/decoder/README.md.
#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "gtest/gtest.h"
#include "ops/parallel.h"
#include "tests/trainer/golden_model.h"
#include "trainer/engine.h"

namespace thimble {
namespace {

class DecoderGoldenTest : public testing::TestWithParam<std::string> {
 protected:
  void TearDown() override { SetNumThreads(2); }
};

TEST_P(DecoderGoldenTest, LogitsMatch) {
  GoldenModel model(GetParam());
  Engine engine = model.MakeEngine(SavePolicy::kKeep);
  const ConstMatrix hidden = engine.Hidden(model.batch());
  const WeightView head = model.store().entry(model.decoder().head).view;
  std::vector<float> weights(head.cols);
  int64_t row = 0;
  for (const char* name : {"logits.0", "logits.1"}) {
    const std::vector<float> expected = ReadFloats(model.expected(), name);
    const int64_t rows = static_cast<int64_t>(expected.size()) / head.rows;
    std::vector<float> logits(expected.size());
    for (int64_t v = 0; v < head.rows; ++v) {
      DecodeRow(head, v, 0, head.cols, weights.data());
      for (int64_t t = 0; t < rows; ++t) {
        double sum = 0;
        for (int64_t i = 0; i < head.cols; ++i) sum += static_cast<double>(hidden(row + t, i)) * weights[i];
        logits[t * head.rows + v] = static_cast<float>(sum);
      }
    }
    row += rows;
    EXPECT_LT(RelativeDifference(expected, logits.data()), 1e-5) << name;
  }
}

TEST_P(DecoderGoldenTest, LossAndGradientsMatch) {
  GoldenModel model(GetParam());
  Engine engine = model.MakeEngine(SavePolicy::kKeep);
  engine.ZeroGradients();
  const double loss = engine.TrainMicroStep(model.batch(), model.inverse(), 0) * model.inverse();
  EXPECT_NEAR(loss, ReadFloats(model.expected(), "loss")[0], 1e-5 * loss);
  size_t compared = 0;
  for (const TensorInfo& info : model.expected().tensors()) {
    if (!absl::StartsWith(info.name, "grad.")) continue;
    const auto name = absl::StripPrefix(absl::StripPrefix(info.name, "grad."), "base_model.model.");
    const StoreId id = model.store().Find(absl::StrCat(std::string(name), "#gradient"));
    ASSERT_GE(id, 0) << info.name;
    EXPECT_LT(RelativeDifference(ReadFloats(model.expected(), info.name), model.store().matrix(id).data), 1e-4)
        << info.name;
    ++compared;
  }
  EXPECT_EQ(compared, model.store().Trainable().size());
}

TEST_P(DecoderGoldenTest, TwentyStepsMatch) {
  GoldenModel model(GetParam());
  Engine engine = model.MakeEngine(SavePolicy::kRecompute);
  const std::vector<float> losses = ReadFloats(model.expected(), "losses");
  ASSERT_EQ(losses.size(), 21u);
  for (int step = 0; step <= 20; ++step) {
    engine.ZeroGradients();
    const double loss = engine.TrainMicroStep(model.batch(), model.inverse(), 0) * model.inverse();
    EXPECT_NEAR(loss, losses[step], 1e-4 * losses[step]) << "step " << step;
    engine.Update(1e-3, step + 1);
  }
}

// Gradients as one list, for comparison bit by bit.
std::vector<float> AllGradients(const std::string& name, SavePolicy policy, int threads) {
  SetNumThreads(threads);
  GoldenModel model(name);
  Engine engine = model.MakeEngine(policy);
  engine.ZeroGradients();
  engine.TrainMicroStep(model.batch(), model.inverse(), 0);
  EXPECT_EQ(engine.arena_high_water_bytes(), engine.largest().plan.device.peak_bytes);
  std::vector<float> all;
  for (StoreId id : model.store().Trainable()) {
    const Vector gradient = model.store().vector(model.store().entry(id).gradient);
    all.insert(all.end(), gradient.data, gradient.data + gradient.size);
  }
  return all;
}

TEST_P(DecoderGoldenTest, SameBitsForAnyPolicyAndThreads) {
  const std::vector<float> keep = AllGradients(GetParam(), SavePolicy::kKeep, 1);
  EXPECT_EQ(keep, AllGradients(GetParam(), SavePolicy::kKeep, 2));
  EXPECT_EQ(keep, AllGradients(GetParam(), SavePolicy::kRecompute, 1));
  EXPECT_EQ(keep, AllGradients(GetParam(), SavePolicy::kRecompute, 2));
}

std::vector<std::string> Cases() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(GoldenFolder(""))) {
    if (entry.is_directory()) names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

INSTANTIATE_TEST_SUITE_P(Cases, DecoderGoldenTest, testing::ValuesIn(Cases()),
                         [](const testing::TestParamInfo<std::string>& info) { return info.param; });

}  // namespace
}  // namespace thimble
