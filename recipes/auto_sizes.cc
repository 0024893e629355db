#include "recipes/auto_sizes.h"

#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ops/check.h"
#include "recipes/schema.h"

namespace thimble {
namespace {

using recipe::Recipe;

constexpr int64_t kGrain = 64;
constexpr int64_t kContextOfNone = 131072;  // where a configuration states none

bool SequenceIsAuto(const Recipe& recipe) { return recipe.data().seq_len() == kAutoSize; }
bool BatchIsAuto(const Recipe& recipe) { return recipe.training().micro_batch_size() == kAutoSize; }

int64_t LongestSequence(const DecoderConfig& config) {
  return config.max_position > 0 ? config.max_position : kContextOfNone;
}

class AutoSizes {
 public:
  AutoSizes(const PlannedRun& run, const Recipe& recipe) : run_(run), recipe_(recipe) {}

  absl::StatusOr<std::string> Choose(Recipe* resolved) {
    std::string text;
    if (SequenceIsAuto(recipe_)) {
      ASSIGN_OR_RETURN(const int64_t seq_len, ChooseSequence(*resolved));
      resolved->mutable_data()->set_seq_len(seq_len);
      absl::StrAppend(&text, "data.seq_len ", seq_len, ", the longest that fits");
    }
    if (BatchIsAuto(recipe_)) {
      RETURN_IF_ERROR(ChooseBatch(resolved));
      absl::StrAppendFormat(&text, "%straining.micro_batch_size %d x accumulation %d, %.3g tokens/s predicted",
                            text.empty() ? "" : "; ", resolved->training().micro_batch_size(),
                            resolved->training().accumulation(), best_rate_);
    }
    return "auto: " + text;
  }

 private:
  absl::StatusOr<bool> Fits(const Recipe& recipe) {
    ASSIGN_OR_RETURN(planned_, PlanVariation(run_, recipe));
    return CheckBudget(planned_->plan, planned_->engine_options).ok();
  }

  absl::StatusOr<int64_t> ChooseSequence(Recipe recipe) {
    const int64_t longest = LongestSequence(run_.model->config);
    const auto fits = [&](int64_t seq_len) -> absl::StatusOr<bool> {
      recipe.mutable_data()->set_seq_len(seq_len);
      const absl::StatusOr<bool> fitting = Fits(recipe);
      // No row is short enough: memory is not what is missing.
      if (absl::IsInvalidArgument(fitting.status())) return true;
      return fitting;
    };
    ASSIGN_OR_RETURN(const bool all, fits(longest));
    if (all) return longest;
    int64_t low = 0;
    int64_t high = (longest + kGrain - 1) / kGrain;
    while (high - low > 1) {
      const int64_t middle = low + (high - low) / 2;
      ASSIGN_OR_RETURN(const bool fitting, fits(middle * kGrain));
      (fitting ? low : high) = middle;
    }
    return std::min(longest, std::max<int64_t>(1, low) * kGrain);
  }

  absl::Status ChooseBatch(Recipe* resolved) {
    const MachineRates rates = LoadOrMeasureRates(MachineRatesPath());
    const int64_t sequences = recipe_.training().accumulation();
    Recipe best = *resolved;
    for (int64_t size = 1; size <= sequences; ++size) {
      if (sequences % size != 0) continue;
      Recipe candidate = *resolved;
      candidate.mutable_training()->set_micro_batch_size(size);
      candidate.mutable_training()->set_accumulation(sequences / size);
      ASSIGN_OR_RETURN(const bool fits, Fits(candidate));
      if (!fits) break;
      const double rate = static_cast<double>(StepTokens(*planned_->engine, candidate)) /
                          PredictStep(planned_->decoder, *planned_->engine, candidate, rates).seconds;
      if (rate <= best_rate_) continue;
      best_rate_ = rate;
      best = candidate;
    }
    *resolved = best;
    return absl::OkStatus();
  }

  const PlannedRun& run_;
  const Recipe& recipe_;
  std::unique_ptr<Variation> planned_;
  double best_rate_ = 0;
};

}  // namespace

bool HasAutoSizes(const Recipe& recipe) { return SequenceIsAuto(recipe) || BatchIsAuto(recipe); }

void SetLargestSizes(const DecoderConfig& config, Recipe* recipe) {
  if (SequenceIsAuto(*recipe)) recipe->mutable_data()->set_seq_len(LongestSequence(config));
  if (BatchIsAuto(*recipe)) recipe->mutable_training()->set_micro_batch_size(1);
}

absl::StatusOr<std::string> ChooseAutoSizes(const PlannedRun& run, const Recipe& recipe, Recipe* resolved) {
  return AutoSizes(run, recipe).Choose(resolved);
}

void CopyAutoSizes(const Recipe& like, Recipe* recipe) {
  if (SequenceIsAuto(*recipe)) recipe->mutable_data()->set_seq_len(like.data().seq_len());
  if (!BatchIsAuto(*recipe)) return;
  recipe->mutable_training()->set_micro_batch_size(like.training().micro_batch_size());
  recipe->mutable_training()->set_accumulation(like.training().accumulation());
}

}  // namespace thimble
