#include "trainer/save_plan.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace thimble {
namespace {

std::string TextOf(const LayerSavePlan& plan) {
  if (plan.boundary == SaveAction::kKeep) return std::string(NameOf(plan.inner));
  return absl::StrCat(std::string(NameOf(plan.inner)), "/", std::string(NameOf(plan.boundary)));
}

}  // namespace

std::string_view NameOf(SaveAction action) {
  switch (action) {
    case SaveAction::kKeep:
      return "keep";
    case SaveAction::kRecompute:
      return "recompute";
    case SaveAction::kOffloadHost:
      return "offload_host";
    case SaveAction::kOffloadDisk:
      return "offload_disk";
  }
  return "";
}

SavePlan::SavePlan(SavePolicy policy) {
  switch (policy) {
    case SavePolicy::kKeep:
      break;
    case SavePolicy::kRecompute:
      all_ = {SaveAction::kRecompute, SaveAction::kKeep};
      break;
    case SavePolicy::kOffloadHost:
      all_ = {SaveAction::kOffloadHost, SaveAction::kOffloadHost};
      break;
    case SavePolicy::kOffloadDisk:
      all_ = {SaveAction::kOffloadDisk, SaveAction::kOffloadDisk};
      break;
  }
}

const LayerSavePlan& SavePlan::layer(int64_t index) const {
  return index < static_cast<int64_t>(layers_.size()) ? layers_[index] : all_;
}

void SavePlan::SetLayer(int64_t index, LayerSavePlan plan) {
  if (index >= static_cast<int64_t>(layers_.size())) layers_.resize(index + 1, all_);
  layers_[index] = plan;
}

SaveAction SavePlan::ActionOf(const Value& value) const {
  if (value.layer < 0) return SaveAction::kKeep;
  const LayerSavePlan& plan = layer(value.layer);
  const SaveAction action = value.boundary ? plan.boundary : plan.inner;
  const bool transfer = action == SaveAction::kOffloadHost || action == SaveAction::kOffloadDisk;
  return transfer && value.bytes() < kSmallestTransferBytes ? SaveAction::kKeep : action;
}

bool SavePlan::UsesTier(SaveAction action) const {
  const auto uses = [action](const LayerSavePlan& plan) { return plan.inner == action || plan.boundary == action; };
  return uses(all_) || std::any_of(layers_.begin(), layers_.end(), uses);
}

Compression SavePlan::CompressionOf(const Value& value) const {
  const bool whole = value.layer < 0 || value.statistic || value.bytes() < kSmallestTransferBytes;
  return whole ? Compression::kNone : compression_;
}

SavePlan SavePlan::WithoutOffload() const {
  SavePlan plan = *this;
  const auto keep = [](SaveAction* action) {
    if (*action != SaveAction::kRecompute) *action = SaveAction::kKeep;
  };
  keep(&plan.all_.inner);
  keep(&plan.all_.boundary);
  for (LayerSavePlan& layer : plan.layers_) {
    keep(&layer.inner);
    keep(&layer.boundary);
  }
  return plan;
}

std::string SavePlan::Text(int64_t num_layers) const {
  std::string text = LayersText(num_layers);
  if (compression_ == Compression::kBF16) absl::StrAppend(&text, ", in bf16");
  if (compression_ == Compression::kInt8) absl::StrAppend(&text, ", in int8");
  return text;
}

std::string SavePlan::LayersText(int64_t num_layers) const {
  std::string text;
  for (int64_t first = 0; first < num_layers;) {
    int64_t last = first;
    while (last + 1 < num_layers && layer(last + 1) == layer(first)) ++last;
    if (first == 0 && last == num_layers - 1) return TextOf(layer(0));
    absl::StrAppend(&text, text.empty() ? "" : "; ", first);
    if (last > first) absl::StrAppend(&text, "-", last);
    absl::StrAppend(&text, " ", TextOf(layer(first)));
    first = last + 1;
  }
  return text;
}

}  // namespace thimble
