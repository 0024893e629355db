#include "recipes/train_run.h"

#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "data/data_report.h"
#include "data/file.h"
#include "ops/check.h"
#include "recipes/recipe_options.h"
#include "recipes/recipe_writer.h"
#include "recipes/run_summary.h"
#include "trainer/checkpoint.h"
#include "trainer/process_memory.h"
#include "trainer/run_log.h"
#include "trainer/train_loop.h"

namespace thimble {
namespace {

namespace fs = std::filesystem;
using recipe::Recipe;

std::atomic<bool> g_stop{false};

void RequestStop(int) { g_stop.store(true); }

// SIGINT and SIGTERM end the run after the step in progress; a second one kills as usual.
void InstallSignals() {
  struct sigaction action = {};
  action.sa_handler = RequestStop;
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

absl::Status PrepareFolder(const std::string& folder, bool resume) {
  std::error_code error;
  if (!resume && fs::exists(folder) && !fs::is_empty(folder, error)) {
    return absl::AlreadyExistsError(absl::StrCat(folder,
                                                 ": the run folder is not empty; go on with thimble train --resume ",
                                                 folder, ", or choose another output.folder"));
  }
  fs::create_directories(fs::path(folder) / "checkpoints", error);
  if (error) return absl::PermissionDeniedError(absl::StrCat("cannot create ", folder, ": ", error.message()));
  return absl::OkStatus();
}

void Say(const std::string& text) { std::fprintf(stderr, "%s\n", text.c_str()); }

// One run, step by step; each member function is a stage.
class Runner {
 public:
  Runner(PlannedRun planned, bool resume) : planned_(std::move(planned)), resume_(resume) {}

  absl::Status Run() {
    const Recipe& recipe = planned_.model->recipe;
    folder_ = recipe.output().folder();
    RETURN_IF_ERROR(Prepare());
    RETURN_IF_ERROR(LoadModel(planned_.model.get()));
    Say("Weights: " + FormatSummary(planned_.model->store));
    ASSIGN_OR_RETURN(const TrainState state, StartingState());
    ASSIGN_OR_RETURN(const TrainResult result, Train(state));
    RETURN_IF_ERROR(WriteReport(result));
    if (result.interrupted) {
      return absl::CancelledError(
          absl::StrCat("interrupted after step ", result.state.step, "; go on with: thimble train --resume ", folder_));
    }
    RETURN_IF_ERROR(UseBestCheckpoint(result));
    absl::StatusOr<ExportOutcome> exported = Export();
    if (!exported.ok()) return exported.status();
    RETURN_IF_ERROR(WriteSummary(result, *exported));
    return exported->verdict;
  }

 private:
  struct ExportOutcome {
    std::string path;
    ExportQuality quality;
    bool measured = false;
    absl::Status verdict;  // above the recipe's limits
  };

  ModelSession& model() { return *planned_.model; }
  const Recipe& recipe() { return planned_.model->recipe; }

  absl::Status Prepare() {
    Say(DescribeModel(model()));
    if (!model().compute_reason.empty()) Say("compute: " + model().compute_reason);
    Say("Data: " + planned_.data.train.description + "\n      " + planned_.data.encoder->format().description);
    for (const TokenisedDataset* set : {&planned_.data.train, &planned_.data.validation}) {
      if (!set->warning.empty()) Say("warning: " + set->warning);
    }
    Say(FormatDataReport(MakeDataReport(planned_.data.train, *planned_.data.train_stream, *planned_.data.encoder)));
    Say(FormatRunPlan(planned_.plan, /*alive_shown=*/3));
    RETURN_IF_ERROR(CheckBudget(planned_.plan, planned_.engine_options));
    RETURN_IF_ERROR(PrepareFolder(folder_, resume_));
    if (!resume_) RETURN_IF_ERROR(WriteFileAtomically(folder_ + "/recipe.yaml", WriteRecipe(recipe())));
    return WriteFileAtomically(folder_ + "/plan.json", RunPlanJson(planned_.plan).dump(2) + "\n");
  }

  absl::StatusOr<TrainState> StartingState() {
    // What does not change a bit of the weights may differ: where the run lies, what it logs, how many threads.
    Recipe shaping = recipe();
    shaping.clear_output();
    shaping.clear_logging();
    shaping.mutable_training()->clear_threads();
    identity_.recipe = WriteRecipe(shaping);
    if (model().base != nullptr) {
      ASSIGN_OR_RETURN(identity_.base_fingerprint, Fingerprint(*model().base));
    }
    identity_.data_fingerprint = planned_.data.fingerprint;
    identity_.compute = model().decoder.compute == Compute::kBF16 ? "bf16" : "f32";
    PruneCheckpoints(folder_, int64_t{1} << 40, -1);  // leftovers of an interrupted write
    const std::vector<int64_t> steps = ListCheckpoints(folder_);
    if (!resume_ || steps.empty()) return TrainState();
    ASSIGN_OR_RETURN(TrainState state,
                     LoadCheckpoint(CheckpointPath(folder_, steps.back()), identity_, &model().store));
    Say(absl::StrCat("Resuming after step ", state.step));
    return state;
  }

  absl::StatusOr<TrainResult> Train(const TrainState& state) {
    DataSession& data = planned_.data;
    loop_options_ =
        TrainLoopOptionsOf(recipe(), data.train_stream->steps_per_epoch(recipe().training().accumulation()));
    RunLogOptions log_options;
    log_options.folder = folder_;
    log_options.total_steps = loop_options_.schedule.total_steps;
    log_options.resumed_step = state.step;
    log_options.log_every = recipe().training().log_every();
    log_options.tensorboard = recipe().logging().tensorboard();
    ASSIGN_OR_RETURN(log_, RunLog::Open(log_options));
    TrainLoop loop(planned_.engine.get(), data.train_stream.get(), data.eval_stream.get(), loop_options_, folder_,
                   identity_, log_.get());
    if (planned_.sample_context > 0) {
      generator_ = std::make_unique<Generator>(&model().decoder, &model().store, planned_.sample_context);
      loop.on_evaluation = [this](int64_t step) { return Sample(step); };
    }
    InstallSignals();
    return loop.Run(state, &g_stop);
  }

  absl::Status Sample(int64_t step) {
    GenerateOptions options;
    options.max_new_tokens = recipe().training().sample_tokens();
    options.stop_tokens = planned_.data.encoder->StopTokens();
    for (const std::string& prompt : recipe().training().sample_prompts()) {
      ASSIGN_OR_RETURN(const std::vector<int32_t> ids, planned_.data.encoder->EncodePrompt({{"user", prompt}}));
      const Generated answer = generator_->Generate(ids, options, nullptr);
      RETURN_IF_ERROR(log_->Sample({step, prompt, model().tokenizer->Decode(answer.tokens, true)}));
    }
    return absl::OkStatus();
  }

  // What is exported and evaluated is the best checkpoint where evaluations chose one.
  absl::Status UseBestCheckpoint(const TrainResult& result) {
    const int64_t best = result.state.best_step;
    if (!recipe().training().keep_best() || planned_.data.eval_stream == nullptr || best == result.state.step) {
      return absl::OkStatus();
    }
    if (best <= 0 || !fs::exists(CheckpointPath(folder_, best))) return absl::OkStatus();
    Say(absl::StrCat("Taking the best checkpoint, of step ", best));
    return LoadCheckpointTensors(CheckpointPath(folder_, best), &model().store);
  }

  absl::StatusOr<ExportOutcome> Export() {
    ExportOutcome outcome;
    const recipe::Export& from = recipe().output().export_();
    if (from.format() == recipe::Export::FORMAT_NONE) return outcome;
    const ExportOptions options = ExportOptionsOf(recipe());
    if (from.format() == recipe::Export::FORMAT_PEFT) {
      outcome.path = folder_ + "/adapter";
      RETURN_IF_ERROR(ExportPeft(model().decoder, model().store, model().Source(), outcome.path));
      return outcome;
    }
    outcome.path = folder_ + "/model";
    std::error_code error;
    fs::remove_all(outcome.path, error);  // of an earlier sitting of this run
    RETURN_IF_ERROR(ExportMerged(model().decoder, model().store, model().Source(), options, outcome.path));
    BatchStream* held_out =
        planned_.data.eval_stream != nullptr ? planned_.data.eval_stream.get() : planned_.data.train_stream.get();
    ASSIGN_OR_RETURN(outcome.quality, CompareWithExport(planned_.engine.get(), outcome.path, held_out, 64));
    outcome.measured = true;
    outcome.verdict = JudgeExport(outcome.quality, options);
    return outcome;
  }

  absl::Status WriteReport(const TrainResult& result) {
    if (!recipe().logging().report()) return absl::OkStatus();
    RunReport report;
    report.title = model().decoder.adapter.rank > 0 ? "Adapter training" : "Training";
    report.subtitle = folder_;
    report.facts = {{"steps", absl::StrCat(result.state.step)}, {"device plan", MiBText(planned_.plan.planned_bytes)}};
    ReportTable table{"Memory plan", {"category", "bytes"}, {}};
    for (const auto& [name, bytes] : planned_.plan.categories) table.rows.push_back({name, absl::StrCat(bytes)});
    report.tables.push_back(std::move(table));
    report.settings = WriteRecipe(recipe());
    return log_->WriteReport(report);
  }

  absl::Status WriteSummary(const TrainResult& result, const ExportOutcome& exported) {
    RunSummary summary;
    summary.state = result.state;
    summary.train_loss = result.train_loss;
    summary.stopped_early = result.stopped_early;
    summary.plan = planned_.plan;
    summary.measured_device_bytes =
        planned_.plan.planned_bytes - planned_.plan.arena_bytes + planned_.engine->arena_high_water_bytes();
    summary.process_peak_bytes = PeakResidentBytes();
    summary.export_path = exported.path;
    summary.export_measured = exported.measured;
    summary.quality = exported.quality;
    RETURN_IF_ERROR(WriteFileAtomically(folder_ + "/summary.json", RunSummaryJson(summary).dump(2) + "\n"));
    Say(FormatRunSummary(summary, folder_));
    return absl::OkStatus();
  }

  PlannedRun planned_;
  bool resume_;
  std::string folder_;
  RunIdentity identity_;
  TrainLoopOptions loop_options_;
  std::unique_ptr<RunLog> log_;
  std::unique_ptr<Generator> generator_;
};

// Tokens that the longest sample prompt and its answer take.
absl::StatusOr<int64_t> SampleContext(const ModelSession& model, const RowEncoder& encoder) {
  int64_t context = 0;
  for (const std::string& prompt : model.recipe.training().sample_prompts()) {
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids, encoder.EncodePrompt({{"user", prompt}}));
    context = std::max(context, static_cast<int64_t>(ids.size()) + model.recipe.training().sample_tokens());
  }
  return context;
}

}  // namespace

std::string DescribeModel(const ModelSession& model) {
  const DecoderConfig& c = model.decoder.config;
  return absl::StrFormat("Model: %s, %d layers, %d wide, %d tokens; %d parameters, %d train", c.model_type,
                         c.num_layers, c.hidden_dim, c.vocab_size, c.ParameterCount(), TrainedParameters(model));
}

int64_t TrainedParameters(const ModelSession& model) {
  int64_t trained = 0;
  for (StoreId id : model.store.Trainable()) trained += model.store.entry(id).rows * model.store.entry(id).cols;
  return trained;
}

absl::StatusOr<PlannedRun> PlanRun(const Recipe& recipe) {
  PlannedRun run;
  ASSIGN_OR_RETURN(run.model, DeclareModel(recipe));
  ASSIGN_OR_RETURN(run.data, PrepareData(*run.model));
  ASSIGN_OR_RETURN(run.sample_context, SampleContext(*run.model, *run.data.encoder));
  int64_t workspace = 0;
  if (run.sample_context > 0) {
    Generator::DeclareCaches(run.model->decoder, run.sample_context, &run.model->store);
    workspace = Generator::WorkspaceBytes(run.model->decoder, &run.model->store);
  }
  run.engine_options = EngineOptionsOf(recipe);
  run.engine_options.loss.compute = run.model->decoder.compute;
  run.engine_options.max_tokens = run.data.train_stream->max_batch_tokens();
  if (run.data.eval_stream != nullptr) {
    run.engine_options.max_tokens = std::max(run.engine_options.max_tokens, run.data.eval_stream->max_batch_tokens());
  }
  run.engine = std::make_unique<Engine>(&run.model->decoder, &run.model->store, run.engine_options);
  const int64_t budget = recipe.memory().has_device_budget() ? recipe.memory().device_budget() : 0;
  run.plan = MakeRunPlan(run.model->store, *run.engine, budget, workspace, ResidentBytes());
  run.plan.process_bytes = std::max(run.plan.process_bytes, PeakResidentBytes());
  return run;
}

absl::Status TrainRun(const Recipe& recipe, bool resume) {
  if (!recipe.output().has_folder()) {
    return absl::InvalidArgumentError(
        "output.folder: missing; where shall the run go? For example --set "
        "output.folder=runs/first");
  }
  if (!resume) {
    // Before minutes of work, not after.
    std::error_code error;
    if (fs::exists(recipe.output().folder()) && !fs::is_empty(recipe.output().folder(), error)) {
      return PrepareFolder(recipe.output().folder(), false);
    }
  }
  ASSIGN_OR_RETURN(PlannedRun planned, PlanRun(recipe));
  return Runner(std::move(planned), resume).Run();
}

}  // namespace thimble
