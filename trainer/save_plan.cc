#include "trainer/save_plan.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace thimble {
namespace {

std::string TextOf(const LayerSavePlan& plan) {
  std::string text(NameOf(plan.inner));
  const auto add = [&text](const char* before, SaveAction action, SaveAction unless) {
    if (action != unless) absl::StrAppend(&text, before, std::string(NameOf(action)));
  };
  add("/", plan.boundary, SaveAction::kKeep);
  add(" attention=", plan.attention, plan.inner);
  add(" elementwise=", plan.elementwise, plan.inner);
  return text;
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

SaveAction LayerSavePlan::Of(ValueKind kind) const {
  switch (kind) {
    case ValueKind::kInner:
      break;
    case ValueKind::kBoundary:
      return boundary;
    case ValueKind::kAttention:
      return attention;
    case ValueKind::kElementwise:
      return elementwise;
  }
  return inner;
}

SavePlan::SavePlan(SavePolicy policy) {
  switch (policy) {
    case SavePolicy::kKeep:
      break;
    case SavePolicy::kRecompute:
      all_ = LayerSavePlan{SaveAction::kRecompute, SaveAction::kKeep};
      break;
    case SavePolicy::kOffloadHost:
      all_ = LayerSavePlan{SaveAction::kOffloadHost, SaveAction::kOffloadHost};
      break;
    case SavePolicy::kOffloadDisk:
      all_ = LayerSavePlan{SaveAction::kOffloadDisk, SaveAction::kOffloadDisk};
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
  const SaveAction action = layer(value.layer).Of(value.kind);
  const bool transfer = action == SaveAction::kOffloadHost || action == SaveAction::kOffloadDisk;
  return transfer && value.bytes() < kSmallestTransferBytes ? SaveAction::kKeep : action;
}

bool SavePlan::UsesTier(SaveAction action) const {
  const auto uses = [action](const LayerSavePlan& plan) {
    return plan.inner == action || plan.boundary == action || plan.attention == action || plan.elementwise == action;
  };
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
  const auto keep_all = [&keep](LayerSavePlan* layer) {
    for (SaveAction* action : {&layer->inner, &layer->boundary, &layer->attention, &layer->elementwise}) keep(action);
  };
  keep_all(&plan.all_);
  for (LayerSavePlan& layer : plan.layers_) keep_all(&layer);
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
