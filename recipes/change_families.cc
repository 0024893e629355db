#include "recipes/change_families.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "ops/matmul.h"
#include "recipes/plan_policies.h"
#include "recipes/recipe_reader.h"
#include "trainer/engine.h"

namespace thimble {
namespace {

using recipe::Adapter;
using recipe::Memory;
using recipe::Quantization;

// Those that take less than the recipe's own.
Family Policies(const PlannedRun& run) {
  std::vector<std::pair<int64_t, Assignments>> smaller;
  for (const PolicyCandidate& candidate : PolicyCandidates(run.engine_options)) {
    const Engine engine(&run.model->decoder, &run.model->store, candidate.options);
    if (engine.arena_bytes() < run.plan.arena_bytes) smaller.emplace_back(-engine.arena_bytes(), candidate.assignments);
  }
  std::sort(smaller.begin(), smaller.end());
  Family family{ChangeEffect::kSameBits, {}};
  for (const auto& [bytes, assignments] : smaller) family.settings.push_back(assignments);
  return family;
}

// What stays over a step in a tier further away, where no more than its transfers are paid for it.
Family FrozenWeights(const Recipe& recipe) {
  Family family{ChangeEffect::kSameBits, {}};
  if (recipe.adapter().type() == Adapter::TYPE_NONE) return family;
  const Memory::Weights now = recipe.memory().weights();
  if (now == Memory::WEIGHTS_DEVICE) family.settings.push_back({"memory.weights=host"});
  if (now != Memory::WEIGHTS_DISK) family.settings.push_back({"memory.weights=disk"});
  return family;
}

Family OptimizerStates(const Recipe& recipe) {
  Family family{ChangeEffect::kSameBits, {}};
  const Memory::OptimizerState now = recipe.memory().optimizer_state();
  if (now == Memory::OPTIMIZER_STATE_DEVICE) family.settings.push_back({"memory.optimizer_state=host"});
  if (now != Memory::OPTIMIZER_STATE_DISK) family.settings.push_back({"memory.optimizer_state=disk"});
  return family;
}

// Where it leads to the same bits.
Family UpdatesInBackward(const Recipe& recipe) {
  Family family{ChangeEffect::kSameBits, {}};
  const recipe::Training& training = recipe.training();
  const bool possible = training.accumulation() == 1 && recipe.optimizer().max_grad_norm() == 0;
  if (possible && !training.optimizer_in_backward()) family.settings = {{"training.optimizer_in_backward=true"}};
  return family;
}

// Fewer sequences at once and as many more times.
Family MicroBatches(const Recipe& recipe) {
  Family family{ChangeEffect::kSameBatch, {}};
  const int64_t size = recipe.training().micro_batch_size();
  for (int64_t smaller = size / 2; smaller >= 1; --smaller) {
    if (size % smaller != 0) continue;
    family.settings.push_back(
        {absl::StrCat("training.micro_batch_size=", smaller),
         absl::StrCat("training.accumulation=", recipe.training().accumulation() * (size / smaller))});
  }
  return family;
}

// Weights in fewer bits, or frozen beside an adapter.
Family Weights(const Recipe& recipe) {
  Family family;
  const bool quantized = recipe.quantization().format() != Quantization::FORMAT_NONE;
  if (recipe.adapter().type() == Adapter::TYPE_NONE) {
    const Assignments lora = {"adapter.type=lora", "trainable.weights=adapter", "trainable.embeddings=false"};
    family.settings = {lora, lora};
    family.settings[1].push_back("quantization.format=nf4");
  } else if (!quantized) {
    family.settings = {{"quantization.format=nf4"}};
  } else if (!recipe.quantization().double_quant()) {
    family.settings = {{"quantization.double_quant=true"}};
  }
  return family;
}

Family Embeddings(const Recipe& recipe) {
  Family family;
  if (TrainsAllWeights(recipe) && TrainsEmbeddings(recipe)) family.settings = {{"trainable.embeddings=false"}};
  return family;
}

// The MLP on an eighth of the tokens at a time; tapes of more tiles take long to plan.
Family MlpTiles(const PlannedRun& run) {
  const Recipe& recipe = run.model->recipe;
  const bool drops_out = recipe.adapter().type() != Adapter::TYPE_NONE && recipe.adapter().dropout() > 0;
  Family family{drops_out ? ChangeEffect::kSameBatch : ChangeEffect::kSameBits, {}};
  constexpr int64_t kGrain = 8 * kMatMulInnerBlock;
  const int64_t tokens = run.engine_options.max_tokens;
  const int64_t tile = (tokens + kGrain - 1) / kGrain * kMatMulInnerBlock;
  const int64_t now = recipe.memory().mlp_tile() == 0 ? tokens : recipe.memory().mlp_tile();
  if (tile < now) family.settings = {{absl::StrCat("memory.mlp_tile=", tile)}};
  return family;
}

// Every n-th boundary saved; with a policy that computes again what lies between.
Family BoundarySpans(const PlannedRun& run) {
  Family family{ChangeEffect::kSameBits, {}};
  const recipe::Memory& memory = run.model->recipe.memory();
  const bool keeps = memory.activations() == recipe::Memory::ACTIVATIONS_KEEP ||
                     memory.activations() == recipe::Memory::ACTIVATIONS_AUTO;
  for (int64_t span = 2; span <= run.model->config.num_layers / 2 && span <= 16; span *= 2) {
    if (span <= memory.boundary_span()) continue;
    Assignments setting = {absl::StrCat("memory.boundary_span=", span)};
    if (keeps) setting.push_back("memory.activations=recompute");
    family.settings.push_back(std::move(setting));
  }
  return family;
}

Family EightBitMoments(const Recipe& recipe) {
  Family family{ChangeEffect::kRounding, {}};
  const bool possible = recipe.optimizer().name() == recipe::Optimizer::NAME_ADAMW;
  if (possible) family.settings = {{"optimizer.name=adamw8bit"}};
  return family;
}

}  // namespace

std::vector<Family> FamiliesOf(const PlannedRun& run) {
  const Recipe& recipe = run.model->recipe;
  std::vector<Family> families;
  for (Family& family : std::vector<Family>{Policies(run),
                                            BoundarySpans(run),
                                            FrozenWeights(recipe),
                                            OptimizerStates(recipe),
                                            UpdatesInBackward(recipe),
                                            MlpTiles(run),
                                            MicroBatches(recipe),
                                            EightBitMoments(recipe),
                                            Weights(recipe),
                                            Embeddings(recipe),
                                            {ChangeEffect::kOther, {}, true}}) {
    if (!family.settings.empty() || family.longest_sequence) families.push_back(std::move(family));
  }
  return families;
}

}  // namespace thimble
