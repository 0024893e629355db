// The plan of a run as people and programs read it: bytes by category and tier, and who is alive at the peak.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "nlohmann/json.hpp"
#include "trainer/engine.h"
#include "trainer/process_memory.h"
#include "trainer/report_chart.h"
#include "trainer/store.h"

namespace thimble {

// Stated bytes by tier, 0 where none are.
struct TierBudgets {
  int64_t device = 0;
  int64_t host = 0;
  int64_t disk = 0;
};

// Of the host tier or the spill file.
struct TierUse {
  int64_t budget_bytes = 0;
  int64_t planned_bytes = 0;
  int64_t lower_bound_bytes = 0;
};

struct RunPlan {
  // weights, parameters, gradients, moments, cache, alignment, activations, workspaces: bytes of the device tier. Their
  // sum is planned_bytes.
  std::vector<std::pair<std::string, int64_t>> categories;
  int64_t budget_bytes = 0;       // 0: none stated
  int64_t planned_bytes = 0;      // of the device tier
  int64_t lower_bound_bytes = 0;  // no placement needs less
  int64_t arena_bytes = 0;        // activations and workspaces
  TierUse host;
  TierUse disk;
  std::string activations;                                     // what becomes of saved values: "recompute"
  int64_t process_bytes = 0;                                   // device, host and what the process holds besides
  int64_t tokens = 0;                                          // of the largest micro-batch
  std::string peak_step;                                       // op at which the arena is fullest
  std::vector<std::pair<std::string, int64_t>> alive_at_peak;  // largest first
  std::vector<int64_t> live_bytes;                             // of the arena, by step of the largest tape
  int32_t peak_step_index = 0;
};

// `workspace_bytes`: of generation, beyond the arena. `besides_bytes`: what the process holds already.
RunPlan MakeRunPlan(const Store& store, const Engine& engine, const TierBudgets& budgets, int64_t workspace_bytes,
                    int64_t besides_bytes);

// ResourceExhausted, with the bytes and what would lower them, when the plan is above the budget of a
// tier.
absl::Status CheckBudget(const RunPlan& plan, const EngineOptions& options);

// ResourceExhausted where the whole process is planned above what it may have on this machine. `warning`, empty
// otherwise, says so where that is free only in part, or where the stated budgets are above the machine.
absl::Status CheckMachine(const RunPlan& plan, const MachineMemory& machine, std::string* warning);

// A table of at most 80 columns; of the buffers alive at the peak the largest `alive_shown`.
std::string FormatRunPlan(const RunPlan& plan, size_t alive_shown);
// tiers.{device,host,disk}.{budget_bytes,planned_bytes,lower_bound_bytes}, process_planned_bytes, categories, peak.
nlohmann::ordered_json RunPlanJson(const RunPlan& plan);

// Bytes alive over the steps of the largest tape: the arena's, and all of the device tier.
Chart MemoryChart(const RunPlan& plan);

// "12.3 MiB"
std::string MiBText(int64_t bytes);

}  // namespace thimble
