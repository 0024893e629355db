#include "recipes/train_run.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "data/data_report.h"
#include "data/file.h"
#include "ops/check.h"
#include "recipes/export_model.h"
#include "recipes/recipe_options.h"
#include "recipes/recipe_writer.h"
#include "recipes/run_folder.h"
#include "recipes/run_summary.h"
#include "recipes/stop_signals.h"
#include "recipes/text_layout.h"
#include "trainer/checkpoint.h"
#include "trainer/generator.h"
#include "trainer/process_memory.h"
#include "trainer/run_log.h"
#include "trainer/train_loop.h"

namespace thimble {
namespace {

namespace fs = std::filesystem;
using recipe::Recipe;

constexpr size_t kChangesShown = 3;

void Say(const std::string& text) { std::fprintf(stderr, "%s\n", text.c_str()); }

// One run, step by step; each member function is a stage.
class Runner {
 public:
  Runner(PlannedRun planned, std::unique_ptr<RunFolder> run_folder, ReadVariation read)
      : planned_(std::move(planned)),
        run_folder_(std::move(run_folder)),
        read_(std::move(read)),
        resume_(!run_folder_->is_new()) {}

  absl::Status Run() {
    folder_ = recipe().output().folder();
    RETURN_IF_ERROR(ShowPlan());
    RETURN_IF_ERROR(planned_.engine->Prepare());
    RETURN_IF_ERROR(LoadModel(planned_.model.get()));
    SayEntry("Weights:", FormatSummary(planned_.model->store));
    ASSIGN_OR_RETURN(const TrainState state, StartingState());
    RETURN_IF_ERROR(WriteHead());
    const absl::StatusOr<TrainResult> trained = Train(state);
    StopAtOnceOnSignals();
    if (!trained.ok()) return WithWayOn(trained.status());
    const TrainResult& result = *trained;
    RETURN_IF_ERROR(WriteReport(result));
    if (result.interrupted) {
      return absl::CancelledError(
          absl::StrCat("interrupted after step ", result.state.step, "; go on with: thimble train --resume ", folder_));
    }
    const int64_t steps = result.state.step - state.step;
    if (steps > 0 && result.skipped_steps == steps) {
      return absl::InternalError(
          "no step had a finite gradient, so nothing was trained: the base may be damaged (thimble eval says), or the "
          "learning rate of an earlier sitting too high");
    }
    RETURN_IF_ERROR(UseBestCheckpoint(result));
    ExportReport exported;
    if (recipe().output().export_().format() != recipe::Export::FORMAT_NONE) {
      absl::StatusOr<ExportReport> report = Export();
      if (!report.ok()) return WithWayOn(report.status());
      exported = *std::move(report);
    }
    RETURN_IF_ERROR(WriteSummary(result, exported));
    return exported.verdict;
  }

 private:
  void SayEntry(std::string_view name, const std::string& text) {
    std::string entry;
    AppendEntry(name, text, name.size() + 1, &entry);
    entry.pop_back();  // the line end, which Say writes
    Say(entry);
  }
  ModelSession& model() { return *planned_.model; }
  const Recipe& recipe() { return planned_.model->recipe; }

  absl::Status ShowPlan() {
    Say(DescribeModel(model()));
    if (!planned_.auto_sizes.empty()) Say(planned_.auto_sizes);
    const int64_t context = model().config.max_position;
    if (context > 0 && recipe().data().seq_len() > context) {
      Say(absl::StrCat("warning: data.seq_len ", recipe().data().seq_len(), " is beyond the model's context of ",
                       context, " tokens"));
    }
    if (!model().compute_reason.empty()) SayEntry("compute:", model().compute_reason);
    std::string data;
    AppendEntry("Data:", planned_.data.train.description, 6, &data);
    Say(data + planned_.data.encoder->format().description);
    for (const TokenisedDataset* set : {&planned_.data.train, &planned_.data.validation}) {
      if (!set->warning.empty()) Say("warning: " + set->warning);
    }
    Say(FormatDataReport(MakeDataReport(planned_.data.train, *planned_.data.train_stream, *planned_.data.encoder)));
    Say(FormatRunPlan(planned_.plan, /*alive_shown=*/3));
    const absl::Status fits = CheckBudget(planned_.plan, planned_.engine_options);
    if (!fits.ok() && read_) {
      const MachineRates rates = LoadOrMeasureRates(MachineRatesPath());
      Say(FormatChanges(FindChanges(planned_, read_, rates, kChangesShown), planned_.plan));
    }
    RETURN_IF_ERROR(fits);
    std::string warning;
    RETURN_IF_ERROR(CheckMachine(planned_.plan, ReadMachineMemory(), &warning));
    if (!warning.empty()) Say("warning: " + warning);
    return absl::OkStatus();
  }

  // The first files of the run folder, once nothing of the input can be wrong any more.
  absl::Status WriteHead() {
    if (!resume_) {
      RETURN_IF_ERROR(WriteFileAtomically(folder_ + "/recipe.yaml", WriteRecipe(recipe())));
      run_folder_->Keep();
    }
    std::error_code error;
    fs::create_directories(fs::path(folder_) / "checkpoints", error);
    if (error)
      return absl::PermissionDeniedError(absl::StrCat("cannot create ", folder_, "/checkpoints: ", error.message()));
    return WriteFileAtomically(folder_ + "/plan.json", RunPlanJson(planned_.plan).dump(2) + "\n");
  }

  // A failure after checkpoints were written, a full disk for example, is not the end of the run.
  absl::Status WithWayOn(const absl::Status& status) const {
    const std::vector<int64_t> steps = ListCheckpoints(folder_);
    if (steps.empty()) return status;
    return absl::Status(status.code(),
                        absl::StrCat(std::string(status.message()), "; the checkpoint of step ", steps.back(),
                                     " is kept, go on with: thimble train --resume ", folder_));
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
    if (model().teacher != nullptr) {
      ASSIGN_OR_RETURN(const std::string teacher, Fingerprint(*model().teacher));
      absl::StrAppend(&identity_.base_fingerprint, "+", teacher);
    }
    identity_.data_fingerprint = planned_.data.fingerprint;
    identity_.data_form = RowFormName(planned_.data.train.form);
    identity_.compute = model().decoder.compute == Compute::kBF16 ? "bf16" : "f32";
    PruneCheckpoints(folder_, int64_t{1} << 40, -1);  // leftovers of an interrupted write
    const std::vector<int64_t> steps = ListCheckpoints(folder_);
    if (resume_ && steps.empty()) Say("The run has no checkpoint yet: it begins anew");
    if (!resume_ || steps.empty()) return TrainState();
    absl::StatusOr<TrainState> state = LoadCheckpoint(CheckpointPath(folder_, steps.back()), identity_, &model().store);
    if (absl::IsDataLoss(state.status())) {
      const std::string way_on = steps.size() < 2 ? "there is no older one: start a new run"
                                                  : absl::StrCat("remove it to go on from the one before, ",
                                                                 CheckpointPath(folder_, steps[steps.size() - 2]));
      return absl::DataLossError(absl::StrCat(std::string(state.status().message()), "; ", way_on));
    }
    RETURN_IF_ERROR(state.status());
    Say(absl::StrCat("Resuming after step ", state->step));
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
    return loop.Run(state, &StopAfterStepOnSignals());
  }

  absl::Status Sample(int64_t step) {
    GenerateOptions options;
    options.max_new_tokens = recipe().training().sample_tokens();
    options.stop_tokens = planned_.data.encoder->StopTokens();
    for (const std::string& prompt : recipe().training().sample_prompts()) {
      ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                       planned_.data.encoder->EncodePrompt({{"user", prompt}}, planned_.data.train.form));
      const Generated answer = generator_->Generate(ids, options, nullptr);
      RETURN_IF_ERROR(generator_->status());
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
    std::error_code error;
    if (best == 0) Say("warning: no step lowered the validation loss below that of the start; the last one is taken");
    if (best <= 0 || !fs::exists(CheckpointPath(folder_, best), error)) return absl::OkStatus();
    Say(absl::StrCat("Taking the best checkpoint, of step ", best));
    return LoadCheckpointTensors(CheckpointPath(folder_, best), &model().store);
  }

  // The folder is there when the export was accepted, and only then.
  absl::StatusOr<ExportReport> Export() {
    const recipe::Export& from = recipe().output().export_();
    ExportRequest request;
    request.adapter = from.format() == recipe::Export::FORMAT_PEFT;
    request.gguf = from.format() == recipe::Export::FORMAT_GGUF;
    request.quantize = WeightFormatNamed(recipe::Export::Format_Name(from.format()));
    request.options = ExportOptionsOf(recipe());
    request.options.packed = from.format() == recipe::Export::FORMAT_PACKED;
    request.out = folder_ + (request.adapter ? "/adapter" : "/model");
    request.engine = planned_.engine.get();
    request.run_data = &planned_.data;
    std::error_code error;
    fs::remove_all(request.out, error);  // of an earlier sitting of this run
    ASSIGN_OR_RETURN(ExportReport report, ExportModel(planned_.model.get(), request));
    if (!report.verdict.ok()) {
      report.verdict = absl::Status(report.verdict.code(),
                                    absl::StrCat(report.verdict.message(),
                                                 ". The run is kept without an export; write one under other limits "
                                                 "with: thimble export ",
                                                 folder_, " --max_kl=... --min_agreement=... --out=FOLDER"));
    }
    return report;
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
    report.charts.push_back(MemoryChart(planned_.plan));
    report.settings = WriteRecipe(recipe());
    return log_->WriteReport(report);
  }

  absl::Status WriteSummary(const TrainResult& result, const ExportReport& exported) {
    RunSummary summary;
    summary.state = result.state;
    summary.train_loss = result.state.train_loss;
    summary.stopped_early = result.stopped_early;
    summary.plan = planned_.plan;
    summary.measured = Measure(planned_, generator_.get());
    for (const Tier* tier : {planned_.engine->tier(Placement::kHost), planned_.engine->tier(Placement::kDisk),
                             static_cast<const Tier*>(model().store.weight_tier()),
                             static_cast<const Tier*>(model().store.state_tier())}) {
      if (tier != nullptr) summary.stalled_seconds += tier->stalled_seconds();
    }
    summary.process_peak_bytes = PeakResidentBytes();
    summary.export_path = exported.path;
    summary.export_accepted = exported.verdict.ok();
    summary.export_measured = exported.measured;
    summary.quality = exported.quality;
    if (exported.measured) summary.export_steps = QualityJson(exported, ExportOptionsOf(recipe()))["steps"];
    RETURN_IF_ERROR(WriteFileAtomically(folder_ + "/summary.json", RunSummaryJson(summary).dump(2) + "\n"));
    Say(FormatRunSummary(summary, folder_));
    return absl::OkStatus();
  }

  PlannedRun planned_;
  std::unique_ptr<RunFolder> run_folder_;
  ReadVariation read_;
  bool resume_;
  std::string folder_;
  RunIdentity identity_;
  TrainLoopOptions loop_options_;
  std::unique_ptr<RunLog> log_;
  std::unique_ptr<Generator> generator_;
};

}  // namespace

absl::Status TrainRun(const Recipe& recipe, bool resume, const ReadVariation& read) {
  if (!recipe.output().has_folder()) {
    return absl::InvalidArgumentError(
        "output.folder: missing; where shall the run go? For example --set "
        "output.folder=runs/first");
  }
  StopAtOnceOnSignals();
  const std::string& folder = recipe.output().folder();
  ASSIGN_OR_RETURN(std::unique_ptr<RunFolder> run_folder, resume ? RunFolder::Reopen(folder) : RunFolder::Make(folder));
  if (!run_folder->warning().empty()) Say("warning: " + run_folder->warning());
  ASSIGN_OR_RETURN(PlannedRun planned, PlanRun(recipe));
  return Runner(std::move(planned), std::move(run_folder), read).Run();
}

}  // namespace thimble
