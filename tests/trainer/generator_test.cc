// Generation against the full forward pass, the sampler's statistics, and a published tiny model.
#include "trainer/generator.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "data/file.h"
#include "data/tokenizer.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/trainer/golden_model.h"
#include "tests/trainer/tiny_model.h"
#include "trainer/weight_loader.h"

namespace thimble {
namespace {

constexpr int64_t kVocab = 67;

Batch BatchOf(const std::vector<int32_t>& tokens) {
  Batch batch = RandomSample(std::ssize(tokens), 0, 1);
  batch.tokens = tokens;
  for (size_t t = 0; t + 1 < tokens.size(); ++t) batch.targets[t] = tokens[t + 1];
  return batch;
}

GenerateOptions Greedy(int64_t max_new_tokens) {
  GenerateOptions options;
  options.max_new_tokens = max_new_tokens;
  return options;
}

GenerateOptions Sampled(double temperature, int64_t top_k = 0, double top_p = 1) {
  GenerateOptions options;
  options.temperature = temperature;
  options.top_k = top_k;
  options.top_p = top_p;
  return options;
}

// log softmax of one row of logits.
std::vector<double> LogProbs(const float* logits, int64_t vocab) {
  const double top = *std::max_element(logits, logits + vocab);
  double sum = 0;
  for (int64_t v = 0; v < vocab; ++v) sum += std::exp(logits[v] - top);
  std::vector<double> result;
  for (int64_t v = 0; v < vocab; ++v) result.push_back(logits[v] - top - std::log(sum));
  return result;
}

std::vector<int32_t> Prompt(int64_t length) { return RandomSample(length, 42, kVocab).tokens; }

// A model whose next-token distribution is neither flat nor certain.
DecoderConfig SharpConfig(bool windowed) {
  DecoderConfig config = TinyConfig();
  if (windowed) config.windows = {5, 0};
  return config;
}

TEST(GeneratorTest, GreedyIsTheArgmaxOfTheFullForwardPass) {
  for (const bool windowed : {false, true}) {
    TinyModel model(SharpConfig(windowed), TinyAdapter());
    Generator generator(&model.decoder(), &model.store(), 128);
    Engine engine = model.MakeEngine(128);
    for (const int64_t length : {1, 2, 37, 100}) {
      std::vector<int32_t> tokens = Prompt(length);
      std::vector<int32_t> seen;
      const Generated generated = generator.Generate(tokens, Greedy(20), [&](int32_t t) { seen.push_back(t); });
      ASSERT_EQ(generated.tokens.size(), 20u);
      EXPECT_EQ(seen, generated.tokens);
      EXPECT_FALSE(generated.stopped);
      for (size_t i = 0; i < generated.tokens.size(); ++i) {
        const std::vector<float> logits = LogitsOf(&engine, BatchOf(tokens));
        const float* last = logits.data() + (std::ssize(tokens) - 1) * kVocab;
        ASSERT_EQ(generated.tokens[i], std::max_element(last, last + kVocab) - last) << "token " << i;
        EXPECT_NEAR(generated.logprobs[i], LogProbs(last, kVocab)[generated.tokens[i]], 1e-5);
        tokens.push_back(generated.tokens[i]);
      }
    }
  }
}

// A prompt goes through the caches in chunks of 64, 32, ..., 1; an answer in single tokens: the same bits either way.
TEST(GeneratorTest, ChunkedPrefillEqualsSingleTokens) {
  TinyModel model(SharpConfig(true));
  Generator generator(&model.decoder(), &model.store(), 256);
  const std::vector<int32_t> prompt = Prompt(3);
  const Generated whole = generator.Generate(prompt, Greedy(150), nullptr);
  for (const int64_t given : {1, 61, 64, 100, 124}) {
    std::vector<int32_t> longer = prompt;
    longer.insert(longer.end(), whole.tokens.begin(), whole.tokens.begin() + given);
    const Generated rest = generator.Generate(longer, Greedy(150 - given), nullptr);
    EXPECT_EQ(rest.tokens, std::vector<int32_t>(whole.tokens.begin() + given, whole.tokens.end()));
    EXPECT_EQ(rest.logprobs, std::vector<float>(whole.logprobs.begin() + given, whole.logprobs.end())) << given;
  }
}

TEST(GeneratorTest, SamplingRepeatsWithItsSeed) {
  TinyModel model(SharpConfig(false));
  Generator generator(&model.decoder(), &model.store(), 128);
  GenerateOptions options = Sampled(1.0);
  options.max_new_tokens = 40;
  options.seed = 3;
  const Generated first = generator.Generate(Prompt(5), options, nullptr);
  EXPECT_EQ(first.tokens, generator.Generate(Prompt(5), options, nullptr).tokens);
  options.seed = 4;
  EXPECT_NE(first.tokens, generator.Generate(Prompt(5), options, nullptr).tokens);
  options.top_k = 1;
  EXPECT_EQ(generator.Generate(Prompt(5), options, nullptr).tokens,
            generator.Generate(Prompt(5), Greedy(40), nullptr).tokens);
  options = Sampled(1.0, 0, 1e-9);
  options.max_new_tokens = 40;
  EXPECT_EQ(generator.Generate(Prompt(5), options, nullptr).tokens,
            generator.Generate(Prompt(5), Greedy(40), nullptr).tokens);
}

// First tokens drawn with many seeds against the model's own distribution, cut and renormalised.
TEST(GeneratorTest, SamplesFollowTemperatureTopKAndTopP) {
  TinyModel model(SharpConfig(false));
  const Vector head = model.store().vector(model.decoder().head);
  for (int64_t i = 0; i < head.size; ++i) head[i] *= 3;  // sharper
  Generator generator(&model.decoder(), &model.store(), 16);
  Engine engine = model.MakeEngine(16);
  const std::vector<int32_t> prompt = Prompt(6);
  const std::vector<float> logits = LogitsOf(&engine, BatchOf(prompt));
  const float* last = logits.data() + 5 * kVocab;
  constexpr int kDraws = 1000;
  for (GenerateOptions options : {Sampled(1.0), Sampled(0.6), Sampled(1.0, 5), Sampled(1.3, 0, 0.6)}) {
    std::vector<double> p(kVocab);
    for (int64_t v = 0; v < kVocab; ++v) p[v] = std::exp(last[v] / options.temperature);
    std::vector<int> order(kVocab);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int a, int b) { return p[a] > p[b]; });
    const double total = std::accumulate(p.begin(), p.end(), 0.0);
    double mass = 0;
    for (int64_t rank = 0; rank < kVocab; ++rank) {
      double& share = p[order[rank]];
      const bool out = (options.top_k > 0 && rank >= options.top_k) || mass >= options.top_p * total;
      mass += share;
      if (out) share = 0;
    }
    const double kept = std::accumulate(p.begin(), p.end(), 0.0);
    std::vector<int> counts(kVocab, 0);
    options.max_new_tokens = 1;
    for (int draw = 0; draw < kDraws; ++draw) {
      options.seed = static_cast<uint64_t>(draw);
      ++counts[generator.Generate(prompt, options, nullptr).tokens[0]];
    }
    for (int64_t v = 0; v < kVocab; ++v) {
      const double expected = p[v] / kept;
      // Five standard deviations of a binomial count.
      EXPECT_NEAR(counts[v], kDraws * expected, 5 * std::sqrt(kDraws * expected * (1 - expected)) + 1e-9) << v;
    }
  }
}

TEST(GeneratorTest, StopTokensEndAndAreNotReturned) {
  TinyModel model(SharpConfig(false));
  Generator generator(&model.decoder(), &model.store(), 128);
  const Generated whole = generator.Generate(Prompt(4), Greedy(30), nullptr);
  // A token whose first place is not the beginning.
  size_t place = 0;
  for (size_t i = 1; i < whole.tokens.size() && place == 0; ++i) {
    if (std::count(whole.tokens.begin(), whole.tokens.begin() + i, whole.tokens[i]) == 0) place = i;
  }
  ASSERT_GT(place, 0u);
  GenerateOptions options = Greedy(30);
  options.stop_tokens = {whole.tokens[place]};
  std::vector<int32_t> seen;
  const Generated cut = generator.Generate(Prompt(4), options, [&](int32_t t) { seen.push_back(t); });
  EXPECT_TRUE(cut.stopped);
  EXPECT_EQ(cut.tokens, std::vector<int32_t>(whole.tokens.begin(), whole.tokens.begin() + place));
  EXPECT_EQ(seen, cut.tokens);
  EXPECT_EQ(cut.logprobs.size(), cut.tokens.size());
  options.max_new_tokens = 0;
  EXPECT_TRUE(generator.Generate(Prompt(4), options, nullptr).tokens.empty());
}

TEST(GeneratorTest, EndsWhereTheCacheEnds) {
  TinyModel model(SharpConfig(false));
  Generator generator(&model.decoder(), &model.store(), 20);
  EXPECT_EQ(generator.max_context(), 20);
  EXPECT_EQ(model.store().BytesOf(Category::kCache), 2 * 2 * 20 * 16 * 4);
  const Generated generated = generator.Generate(Prompt(15), Greedy(100), nullptr);
  EXPECT_EQ(generated.tokens.size(), 6u) << "the last token needs no place in the cache";
  EXPECT_FALSE(generated.stopped);
  EXPECT_EQ(generator.Generate(Prompt(19), Greedy(100), nullptr).tokens.size(), 2u);
}

class StoriesTest : public testing::TestWithParam<std::string> {};

TEST_P(StoriesTest, ReproducesTheReference) {
  const char* assets = std::getenv("THIMBLE_ASSETS");
  const std::filesystem::path path =
      std::filesystem::path(assets != nullptr ? assets : THIMBLE_SOURCE_DIR "/../shared/assets") / "models" /
      GetParam();
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "no " << path << "; set THIMBLE_ASSETS";
  const auto folder = ModelFolder::Open(path.string());
  ASSERT_TRUE(folder.ok()) << folder.status();
  Store store;
  const auto config = ReadDecoderConfig(**folder);
  ASSERT_TRUE(config.ok()) << config.status();
  const auto decoder = DeclareDecoder(*config, AdapterOptions(), /*train_weights=*/false, Compute::kF32,
                                      StorageFor(**folder, {}), &store);
  ASSERT_TRUE(decoder.ok()) << decoder.status();
  store.Allocate();
  ASSERT_TRUE(LoadWeights(**folder, *decoder, {}, &store).ok());
  const auto tokenizer = Tokenizer::Load(path.string());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const nlohmann::json reference = nlohmann::json::parse(ReadFile((path / "reference.json").string()).value());

  const nlohmann::json& probe = reference["probe"];
  const std::vector<int32_t> ids = (*tokenizer)->Encode(probe["text"].get<std::string>(), /*add_special_tokens=*/true);
  EXPECT_EQ(ids, probe["ids"].get<std::vector<int32_t>>());
  EngineOptions options;
  options.train = false;
  options.max_tokens = 64;
  Engine engine(&*decoder, &store, options);
  const Batch batch = BatchOf(ids);
  std::vector<float> losses;
  engine.Evaluate(batch, &losses);
  const std::vector<double> nll = probe["nll"];
  ASSERT_EQ(nll.size() + 1, losses.size());
  // An input that the reference's doubles round to the next int8 moves what follows.
  const double tolerance = config->ternary ? 2e-3 : 2e-5;
  for (size_t t = 0; t < nll.size(); ++t) EXPECT_NEAR(losses[t], nll[t], tolerance) << t;
  const std::vector<float> logits = LogitsOf(&engine, batch);
  const std::vector<float> last_logits = probe["last_logits"];
  EXPECT_LT(RelativeDifference(last_logits, logits.data() + logits.size() - last_logits.size()),
            config->ternary ? 1e-3 : 1e-5);

  const nlohmann::json& greedy = reference["greedy"];
  const std::vector<int32_t> prompt = greedy["prompt_ids"];
  const std::vector<int32_t> expected = greedy["ids"];
  Generator generator(&*decoder, &store, 512);
  const Generated generated = generator.Generate(prompt, Greedy(std::ssize(expected)), nullptr);
  EXPECT_EQ(generated.tokens, expected);
  std::vector<int32_t> all = prompt;
  all.insert(all.end(), generated.tokens.begin(), generated.tokens.end());
  EXPECT_EQ((*tokenizer)->Decode(all, /*skip_special_tokens=*/true), greedy["text"].get<std::string>());
}

INSTANTIATE_TEST_SUITE_P(Models, StoriesTest,
                         testing::Values("stories260K", "stories260K-bf16", "bitnet-stories-1M",
                                         "bitnet-stories-1M-packed"),
                         [](const testing::TestParamInfo<std::string>& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace thimble
