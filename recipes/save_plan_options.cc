#include "recipes/save_plan_options.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "ops/check.h"

namespace thimble {
namespace {

using recipe::Memory;

constexpr SaveAction kActions[] = {SaveAction::kKeep, SaveAction::kRecompute, SaveAction::kOffloadHost,
                                   SaveAction::kOffloadDisk, SaveAction::kKeep /* auto: chosen later */};

SaveAction ActionOf(Memory::Activations activations) { return kActions[activations]; }

bool IsOffload(SaveAction action) { return action == SaveAction::kOffloadHost || action == SaveAction::kOffloadDisk; }

LayerSavePlan AllLayersOf(const Memory& memory) {
  const SaveAction inner = ActionOf(memory.activations());
  LayerSavePlan plan{inner, IsOffload(inner) ? inner : SaveAction::kKeep};
  if (memory.has_boundaries()) plan.boundary = ActionOf(memory.boundaries());
  if (memory.has_attention()) plan.attention = ActionOf(memory.attention());
  if (memory.has_elementwise()) plan.elementwise = ActionOf(memory.elementwise());
  return plan;
}

absl::Status Malformed(const std::string& entry, const std::string& why) {
  return absl::InvalidArgumentError(absl::StrCat("memory.layers: \"", entry, "\": ", why,
                                                 "; expected, for example, \"0-7 keep\" or "
                                                 "\"8-31 recompute/offload_host attention=keep\""));
}

absl::StatusOr<SaveAction> ParseAction(const std::string& text, const std::string& entry) {
  std::vector<std::string> names;
  for (SaveAction action : kActions) {
    if (NameOf(action) == text) return action;
    names.emplace_back(NameOf(action));
  }
  return Malformed(entry, absl::StrCat("\"", text, "\" is none of ", absl::StrJoin(names, ", ")));
}

absl::StatusOr<std::pair<int64_t, int64_t>> ParseRange(const std::string& text, const std::string& entry,
                                                       int64_t num_layers) {
  const std::vector<std::string> ends = absl::StrSplit(text, '-');
  int64_t first = 0;
  int64_t last = 0;
  const bool numbers =
      ends.size() <= 2 && absl::SimpleAtoi(ends.front(), &first) && absl::SimpleAtoi(ends.back(), &last);
  if (!numbers) return Malformed(entry, absl::StrCat("\"", text, "\" is no range of layers"));
  if (first < 0 || last < first || last >= num_layers) {
    return Malformed(entry, absl::StrCat("the model has layers 0 to ", num_layers - 1));
  }
  return std::make_pair(first, last);
}

// "attention=keep"
absl::Status AddKind(const std::string& text, const std::string& entry, LayerSavePlan* layer) {
  const std::vector<std::string> sides = absl::StrSplit(text, absl::MaxSplits('=', 1));
  SaveAction* action = sides[0] == "attention" ? &layer->attention : &layer->elementwise;
  if (sides.size() != 2 || (sides[0] != "attention" && sides[0] != "elementwise")) {
    return Malformed(entry, absl::StrCat("\"", text, "\" is neither attention=CHOICE nor elementwise=CHOICE"));
  }
  ASSIGN_OR_RETURN(*action, ParseAction(sides[1], entry));
  return absl::OkStatus();
}

absl::Status AddException(const std::string& entry, int64_t num_layers, SavePlan* plan) {
  const std::vector<std::string> parts = absl::StrSplit(entry, ' ', absl::SkipEmpty());
  if (parts.size() < 2) return Malformed(entry, "this is not a range and a choice");
  ASSIGN_OR_RETURN(const auto range, ParseRange(parts[0], entry, num_layers));
  const std::vector<std::string> actions = absl::StrSplit(parts[1], '/');
  if (actions.size() > 2) return Malformed(entry, "there is more than one slash");
  ASSIGN_OR_RETURN(const SaveAction inner, ParseAction(actions[0], entry));
  LayerSavePlan layer{inner};
  if (actions.size() == 2) {
    ASSIGN_OR_RETURN(layer.boundary, ParseAction(actions[1], entry));
  }
  for (size_t i = 2; i < parts.size(); ++i) RETURN_IF_ERROR(AddKind(parts[i], entry, &layer));
  for (int64_t i = range.first; i <= range.second; ++i) plan->SetLayer(i, layer);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SavePlan> SavePlanOf(const Memory& memory, int64_t num_layers) {
  const LayerSavePlan all = AllLayersOf(memory);
  SavePlan plan(all);
  if (memory.compress() == Memory::COMPRESS_BF16) plan.SetCompression(Compression::kBF16);
  if (memory.compress() == Memory::COMPRESS_INT8) plan.SetCompression(Compression::kInt8);
  const int64_t span = memory.boundary_span();
  for (int64_t i = 0; span > 1 && i < num_layers; ++i) {
    LayerSavePlan layer = all;
    if ((i + 1) % span != 0) layer.boundary = SaveAction::kRecompute;
    plan.SetLayer(i, layer);
  }
  for (const std::string& entry : memory.layers()) RETURN_IF_ERROR(AddException(entry, num_layers, &plan));
  return plan;
}

}  // namespace thimble
