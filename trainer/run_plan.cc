#include "trainer/run_plan.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ops/check.h"

namespace thimble {
namespace {

constexpr size_t kAliveShown = 8;
constexpr size_t kNameColumns = 40;

// The end of a name says more than its beginning.
std::string Shortened(const std::string& name, size_t columns) {
  return name.size() <= columns ? name : "..." + name.substr(name.size() - columns + 3);
}

absl::Status CheckTier(const char* name, const TierUse& tier) {
  if (tier.budget_bytes == 0 || tier.planned_bytes <= tier.budget_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("the plan needs ", tier.planned_bytes, " bytes (", MiBText(tier.planned_bytes), ") of the ", name,
                   " tier, memory.", name, "_budget allows ", tier.budget_bytes, " (", MiBText(tier.budget_bytes),
                   "). What would lower it: memory.boundary_span; offloading fewer layers (memory.layers); a smaller "
                   "training.micro_batch_size or data.seq_len"));
}

}  // namespace

std::string MiBText(int64_t bytes) { return absl::StrFormat("%.1f MiB", static_cast<double>(bytes) / (1 << 20)); }

RunPlan MakeRunPlan(const Store& store, const Engine& engine, const TierBudgets& budgets, int64_t workspace_bytes,
                    int64_t besides_bytes) {
  RunPlan plan;
  for (Category category : {Category::kWeights, Category::kParameters, Category::kServed, Category::kGradients,
                            Category::kMoments, Category::kCache}) {
    const int64_t bytes = store.BytesOf(category);
    if (bytes > 0) plan.categories.emplace_back(std::string(NameOf(category)), bytes);
  }
  if (store.PaddingBytes() > 0) plan.categories.emplace_back("alignment", store.PaddingBytes());
  const MemoryPlan& memory = engine.largest().plan.device;
  // Scratch at the peak, and whatever lies beside it: the arena is one range that both share.
  plan.categories.emplace_back("activations", engine.arena_bytes() - memory.scratch_bytes_at_peak);
  plan.categories.emplace_back("workspaces", memory.scratch_bytes_at_peak + workspace_bytes);
  for (const auto& [name, bytes] : plan.categories) plan.planned_bytes += bytes;
  plan.budget_bytes = budgets.device;
  const TierPlans& tiers = engine.largest().plan;
  plan.host = {budgets.host, engine.tier_bytes(Placement::kHost), tiers.host.lower_bound_bytes};
  plan.disk = {budgets.disk, engine.tier_bytes(Placement::kDisk), tiers.disk.lower_bound_bytes};
  for (TierUse* tier : {&plan.host, &plan.disk}) {
    const int64_t stays = store.TierBytes(/*host=*/tier == &plan.host);
    tier->planned_bytes += stays;
    tier->lower_bound_bytes += stays;
  }
  plan.arena_bytes = engine.arena_bytes();
  plan.lower_bound_bytes = plan.planned_bytes - engine.arena_bytes() + engine.arena_lower_bound_bytes();
  plan.process_bytes = plan.planned_bytes + plan.host.planned_bytes + besides_bytes;
  const Tape& tape = engine.largest().tape;
  plan.tokens = tape.value(engine.largest().inputs.ids).cols;
  plan.live_bytes = memory.live_bytes;
  plan.peak_step_index = memory.peak_step;
  if (!tape.steps().empty()) {
    const Step& step = tape.steps()[memory.peak_step];
    plan.peak_step = std::string(step.op);
    if (step.layer >= 0) absl::StrAppend(&plan.peak_step, " of layer ", step.layer);
  }
  for (const PlannedBuffer& buffer : memory.AliveAtPeak()) {
    if (plan.alive_at_peak.size() == kAliveShown) break;
    plan.alive_at_peak.emplace_back(buffer.name, buffer.bytes);
  }
  return plan;
}

Chart MemoryChart(const RunPlan& plan) {
  // The most of each stretch: a mean would hide the peak.
  constexpr size_t kPoints = 400;
  const size_t stretch = std::max<size_t>(1, (plan.live_bytes.size() + kPoints - 1) / kPoints);
  const double besides = static_cast<double>(plan.planned_bytes - plan.arena_bytes);
  std::vector<std::pair<double, double>> arena, device;
  for (size_t begin = 0; begin < plan.live_bytes.size(); begin += stretch) {
    const size_t end = std::min(plan.live_bytes.size(), begin + stretch);
    const double most =
        static_cast<double>(*std::max_element(plan.live_bytes.begin() + begin, plan.live_bytes.begin() + end));
    arena.emplace_back(static_cast<double>(begin), most / (1 << 20));
    device.emplace_back(static_cast<double>(begin), (most + besides) / (1 << 20));
  }
  Chart chart;
  chart.title = "Memory over a micro-step";
  chart.unit = "MiB alive, by step of the tape";
  chart.series = {{"weights and all that stays, too", "held", device}, {"activations and workspaces", "main", arena}};
  chart.wide = true;
  return chart;
}

absl::Status CheckBudget(const RunPlan& plan, const EngineOptions& options) {
  RETURN_IF_ERROR(CheckTier("host", plan.host));
  RETURN_IF_ERROR(CheckTier("disk", plan.disk));
  if (plan.budget_bytes == 0 || plan.planned_bytes <= plan.budget_bytes) return absl::OkStatus();
  std::string help;
  if (options.activations == SavePlan(SavePolicy::kKeep)) help = "memory.activations: recompute; ";
  absl::StrAppend(&help, "a smaller training.micro_batch_size or data.seq_len; quantization.format: nf4; ",
                  "optimizer.name: adamw8bit; memory.weights: host or disk; thimble plan says which changes fit");
  return absl::ResourceExhaustedError(
      absl::StrCat("the plan needs ", plan.planned_bytes, " bytes (", MiBText(plan.planned_bytes),
                   "), memory.device_budget allows ", plan.budget_bytes, " (", MiBText(plan.budget_bytes),
                   "): ", MiBText(plan.planned_bytes - plan.budget_bytes), " too much. What would lower it: ", help));
}

absl::Status CheckMachine(const RunPlan& plan, const MachineMemory& machine, std::string* warning) {
  warning->clear();
  const int64_t limit = machine.limit_bytes;
  if (limit > 0 && plan.process_bytes > limit) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the plan needs ", plan.process_bytes, " bytes (", MiBText(plan.process_bytes), ") of memory in all, ",
        machine.limited_by, " ", limit, " (", MiBText(limit),
        "). What would lower it: memory.activations: recompute; memory.weights, memory.optimizer_state or "
        "memory.boundaries on disk; a smaller training.micro_batch_size or data.seq_len; quantization.format: nf4"));
  }
  const int64_t stated = plan.budget_bytes + plan.host.budget_bytes;
  if (machine.available_bytes > 0 && plan.process_bytes > machine.available_bytes) {
    *warning = absl::StrCat("the plan needs ", MiBText(plan.process_bytes), " of memory in all and only ",
                            MiBText(machine.available_bytes), " are free: the run may swap or be killed");
  } else if (limit > 0 && stated > limit) {
    *warning = absl::StrCat("the recipe's budgets state ", MiBText(stated), ", ", machine.limited_by, " ",
                            MiBText(limit), "; this plan needs ", MiBText(plan.process_bytes));
  }
  return absl::OkStatus();
}

std::string FormatRunPlan(const RunPlan& plan, size_t alive_shown) {
  std::string text = absl::StrFormat("Memory plan for micro-batches of %d tokens\n", plan.tokens);
  for (const auto& [name, bytes] : plan.categories) {
    absl::StrAppendFormat(&text, "  %-14s %16d bytes %12s\n", name, bytes, MiBText(bytes));
  }
  const auto line = [&text](const char* name, int64_t bytes) {
    absl::StrAppendFormat(&text, "  %-14s %16d bytes %12s\n", name, bytes, MiBText(bytes));
  };
  line("device", plan.planned_bytes);
  line("  lower bound", plan.lower_bound_bytes);
  if (plan.budget_bytes > 0) line("  budget", plan.budget_bytes);
  if (plan.host.planned_bytes > 0) line("host", plan.host.planned_bytes);
  if (plan.host.budget_bytes > 0) line("  budget", plan.host.budget_bytes);
  if (plan.disk.planned_bytes > 0) line("disk", plan.disk.planned_bytes);
  if (plan.disk.budget_bytes > 0) line("  budget", plan.disk.budget_bytes);
  line("process", plan.process_bytes);
  if (!plan.activations.empty()) absl::StrAppend(&text, "Saved values: ", plan.activations, "\n");
  absl::StrAppend(&text, "The arena is fullest at ", plan.peak_step, ", where these are alive:\n");
  for (size_t i = 0; i < plan.alive_at_peak.size() && i < alive_shown; ++i) {
    const auto& [name, bytes] = plan.alive_at_peak[i];
    absl::StrAppendFormat(&text, "  %-40s %12s\n", Shortened(name, kNameColumns), MiBText(bytes));
  }
  return text;
}

nlohmann::ordered_json RunPlanJson(const RunPlan& plan) {
  nlohmann::ordered_json json;
  const auto tier = [](int64_t budget, int64_t planned, int64_t lower) {
    nlohmann::ordered_json t;
    t["budget_bytes"] = nullptr;
    if (budget > 0) t["budget_bytes"] = budget;
    t["planned_bytes"] = planned;
    t["lower_bound_bytes"] = lower;
    return t;
  };
  json["tiers"]["device"] = tier(plan.budget_bytes, plan.planned_bytes, plan.lower_bound_bytes);
  json["tiers"]["host"] = tier(plan.host.budget_bytes, plan.host.planned_bytes, plan.host.lower_bound_bytes);
  json["tiers"]["disk"] = tier(plan.disk.budget_bytes, plan.disk.planned_bytes, plan.disk.lower_bound_bytes);
  json["save_plan"] = plan.activations;
  json["process_planned_bytes"] = plan.process_bytes;
  for (const auto& [name, bytes] : plan.categories) json["categories"][name] = bytes;
  json["arena_bytes"] = plan.arena_bytes;
  json["micro_batch_tokens"] = plan.tokens;
  json["peak"]["step"] = plan.peak_step;
  json["peak"]["step_index"] = plan.peak_step_index;
  json["peak"]["steps"] = plan.live_bytes.size();
  for (const auto& [name, bytes] : plan.alive_at_peak) {
    json["peak"]["alive"].push_back({{"name", name}, {"bytes", bytes}});
  }
  return json;
}

}  // namespace thimble
