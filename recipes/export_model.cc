// Export with read-back.
#include "recipes/export_model.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "data/file.h"
#include "data/gguf_header.h"
#include "data/quantize_folder.h"
#include "data/tensor_file.h"
#include "ops/check.h"
#include "ops/quantize_scaled.h"
#include "recipes/recipe_options.h"
#include "recipes/served_options.h"
#include "trainer/engine.h"

namespace thimble {
namespace {

namespace fs = std::filesystem;

// Removes what it names unless the export was put in its place.
class FolderBeside {
 public:
  FolderBeside(const std::string& out, const char* ending) : path_(out + ending) { Remove(); }
  ~FolderBeside() { Remove(); }
  FolderBeside(const FolderBeside&) = delete;
  FolderBeside& operator=(const FolderBeside&) = delete;

  const std::string& path() const { return path_; }
  absl::Status MoveTo(const std::string& out) {
    std::error_code error;
    fs::remove_all(out, error);
    if (!error) fs::rename(path_, out, error);
    if (!error) return absl::OkStatus();
    return absl::PermissionDeniedError(
        absl::StrCat("cannot put ", path_, " in the place of ", out, ": ", error.message()));
  }

 private:
  void Remove() {
    std::error_code error;
    fs::remove_all(path_, error);
  }
  std::string path_;
};

// Rows to compare over; null where there are none.
struct HeldOut {
  DataSession data;
  BatchStream* stream = nullptr;
  std::string description;
};

absl::StatusOr<HeldOut> RowsOfFiles(ModelSession* model, const std::vector<std::string>& files) {
  HeldOut rows;
  // A base model without a chat template still has its texts.
  const bool no_template = model->tokens.chat_template.empty();
  if (no_template && model->recipe.data().chat_format() == recipe::Data::CHAT_FORMAT_AUTO) {
    model->recipe.mutable_data()->set_chat_format(recipe::Data::CHAT_FORMAT_PLAIN);
  }
  ASSIGN_OR_RETURN(rows.data.encoder, MakeEncoder(*model));
  DatasetOptions options = ValidationDatasetOptionsOf(model->recipe);
  options.files = files;
  ASSIGN_OR_RETURN(rows.data.validation, TokeniseDataset(options, *rows.data.encoder, model->tokenizer_file, ""));
  PackingOptions packing = PackingOptionsOf(model->recipe);
  packing.shuffle = false;
  packing.held_out_share = 0;
  packing.too_long = TooLong::kCut;
  if (model->decoder.config.max_position > 1) {
    packing.seq_len = std::min(packing.seq_len, model->decoder.config.max_position);
  }
  ASSIGN_OR_RETURN(BatchStream stream, BatchStream::Make(rows.data.validation.rows, packing));
  rows.data.eval_stream = std::make_unique<BatchStream>(std::move(stream));
  rows.stream = rows.data.eval_stream.get();
  // Names alone: the card may be published.
  rows.description = absl::StrJoin(
      files, ", ", [](std::string* out, const std::string& file) { out->append(fs::path(file).filename().string()); });
  return rows;
}

void UseRowsOf(const DataSession& data, HeldOut* rows) {
  const bool held_out = data.eval_stream != nullptr;
  rows->stream = held_out ? data.eval_stream.get() : data.train_stream.get();
  rows->description = held_out ? "the recipe's held-out rows" : "the recipe's training rows (none are held out)";
}

absl::StatusOr<HeldOut> FindHeldOut(ModelSession* model, const ExportRequest& request) {
  if (!request.data.empty()) return RowsOfFiles(model, request.data);
  HeldOut rows;
  if (request.run_data != nullptr) {
    UseRowsOf(*request.run_data, &rows);
    return rows;
  }
  if (model->recipe.data().train_size() == 0) return rows;
  absl::StatusOr<DataSession> data = PrepareData(*model);
  if (!data.ok()) {
    return absl::Status(data.status().code(),
                        absl::StrCat("the run's data, to compare the export over: ", data.status().message(),
                                     "; other rows can be given with --data=FILE"));
  }
  rows.data = *std::move(data);
  UseRowsOf(rows.data, &rows);
  return rows;
}

void CountMerges(const ModelSession& model, ExportReport* report) {
  for (const LayerWeights& layer : model.decoder.layers) {
    for (const LinearWeights* linear : layer.Linears()) {
      if (linear->lora_a >= 0 && !report->adapter) ++report->merged;
      const Format format = model.store.entry(linear->weight).view.format;
      if (IsPlain(format)) continue;
      ++report->decoded;
      report->block_type = std::string(InfoOf(format).name);
    }
  }
}

absl::Status CountFiles(const std::string& folder, ExportReport* report) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const bool gguf = entry.path().extension() == ".gguf";
    if (entry.path().extension() != ".safetensors" && !gguf) continue;
    report->bytes += static_cast<int64_t>(fs::file_size(entry.path(), error));
    if (gguf) {
      ASSIGN_OR_RETURN(const GgufHeader header, ReadGgufHeader(entry.path().string()));
      report->tensors += static_cast<int64_t>(header.tensors().size());
      continue;
    }
    ASSIGN_OR_RETURN(const std::unique_ptr<TensorFile> file, TensorFile::Open(entry.path().string()));
    report->tensors += static_cast<int64_t>(file->tensors().size());
  }
  return absl::OkStatus();
}

// Every tensor of the adapter file is a trained one, bit for bit.
absl::Status CheckAdapter(const Store& store, const std::string& folder) {
  ASSIGN_OR_RETURN(const std::unique_ptr<TensorFile> file, TensorFile::Open(folder + "/adapter_model.safetensors"));
  constexpr std::string_view kPrefix = "base_model.model.";
  std::vector<float> values;
  for (const TensorInfo& tensor : file->tensors()) {
    const StoreId id = store.Find(std::string_view(tensor.name).substr(kPrefix.size()));
    values.resize(tensor.elements);
    RETURN_IF_ERROR(file->ReadFloats(tensor, 0, tensor.elements, values.data()));
    const bool same = id >= 0 && store.vector(id).size == tensor.elements &&
                      std::memcmp(values.data(), store.vector(id).data, values.size() * sizeof(float)) == 0;
    if (!same) {
      return absl::DataLossError(absl::StrCat(file->path(), ": tensor ", tensor.name,
                                              " read back differs from the trained one; is the disk damaged?"));
    }
  }
  return absl::OkStatus();
}

absl::Status MakeFolder(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (!error) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat("cannot create ", path, ": ", error.message()));
}

// Written and read back.
absl::Status WriteAdapter(const ModelSession& model, const ExportRequest& request, const std::string& out) {
  if (!request.gguf) {
    RETURN_IF_ERROR(ExportPeft(model.decoder, model.store, model.Source(), out));
    return CheckAdapter(model.store, out);
  }
  RETURN_IF_ERROR(MakeFolder(out));
  const std::string file = out + "/adapter.gguf";
  RETURN_IF_ERROR(ExportGgufAdapter(model.decoder, model.store, file));
  return CheckGgufAdapter(model.decoder, model.store, file);
}

// The engine of the model as it was trained, from the request or made.
struct TrainedEngine {
  std::unique_ptr<Engine> made;
  Engine* engine = nullptr;

  TrainedEngine(ModelSession* model, const HeldOut& rows, const ExportRequest& request) : engine(request.engine) {
    if (engine != nullptr) return;
    EngineOptions options;
    options.train = false;
    options.loss.compute = model->decoder.compute;
    options.max_tokens = rows.stream->max_batch_tokens();
    made = std::make_unique<Engine>(&model->decoder, &model->store, options);
    engine = made.get();
  }
};

absl::Status Measure(ModelSession* model, const HeldOut& rows, const ExportRequest& request, Engine* engine,
                     const std::string& folder, ExportStep step, ExportReport* report) {
  ASSIGN_OR_RETURN(step.quality, CompareWithExport(engine, folder, rows.stream, request.max_batches,
                                                   model->recipe.memory().spill_folder()));
  ForwardMemory memory;
  memory.Add(*engine);
  memory.planned += step.quality.planned_bytes;
  memory.measured += step.quality.measured_bytes;
  report->memory.Max(memory);
  report->measured = true;
  report->compared_over = rows.description;
  report->quality = step.quality;
  report->steps.push_back(std::move(step));
  return absl::OkStatus();
}

// Nothing but the loss: the tensors are the trained ones.
absl::Status MeasureAdapter(ModelSession* model, const ExportRequest& request, ExportReport* report) {
  const absl::StatusOr<HeldOut> rows = FindHeldOut(model, request);
  if (!rows.ok() && !request.data.empty()) return rows.status();
  if (!rows.ok() || rows->stream == nullptr) {
    report->not_measured = rows.ok() ? "no rows were given" : std::string(rows.status().message());
    return absl::OkStatus();
  }
  TrainedEngine trained(model, *rows, request);
  ExportStep step{"adapter", "f32", {}};
  RETURN_IF_ERROR(rows->stream->Seek({}));
  int64_t batches = rows->stream->batches_per_epoch();
  if (request.max_batches > 0) batches = std::min(batches, request.max_batches);
  double loss = 0;
  Batch batch;
  for (int64_t i = 0; i < batches; ++i) {
    RETURN_IF_ERROR(rows->stream->Next(&batch));
    loss += trained.engine->Evaluate(batch, nullptr);
    RETURN_IF_ERROR(trained.engine->status());
    step.quality.targets += batch.num_targets;
    step.quality.tokens += static_cast<int64_t>(batch.tokens.size());
  }
  step.quality.loss = loss / static_cast<double>(std::max<int64_t>(step.quality.targets, 1));
  step.quality.trained_loss = step.quality.loss;
  step.quality.agreement = 1;
  report->memory.Add(*trained.engine);
  report->measured = true;
  report->compared_over = rows->description;
  report->quality = step.quality;
  report->steps.push_back(std::move(step));
  return absl::OkStatus();
}

// Merged and rounded or quantised in one step, and measured.
absl::Status WriteGguf(ModelSession* model, const ExportRequest& request, const std::string& out,
                       ExportReport* report) {
  const GgufMix* mix = request.gguf_mix != nullptr ? request.gguf_mix : ExportedMix(model->recipe);
  // What the run trained for is written bit for bit.
  const bool as_served = mix == QatMix(model->recipe);
  report->dtype = std::string(mix->name);
  ASSIGN_OR_RETURN(const HeldOut rows, FindHeldOut(model, request));
  RETURN_IF_ERROR(MakeFolder(out));
  const std::string file = out + "/model.gguf";
  RETURN_IF_ERROR(ExportGguf(model->decoder, model->store, model->Source(), *mix, file, as_served));
  if (rows.stream == nullptr) {
    report->not_measured = "no rows were given";
    return absl::OkStatus();
  }
  const TrainedEngine trained(model, rows, request);
  const char* step = IsBlockType(mix->type) ? "quantised" : "merged";
  return Measure(model, rows, request, trained.engine, file, {step, report->dtype, {}}, report);
}

// Merged, and where it is asked for quantised, each measured behind its step.
absl::Status WriteWeights(ModelSession* model, const ExportRequest& request, const std::string& out,
                          ExportReport* report) {
  // First: missing rows should not cost the time of an export.
  ASSIGN_OR_RETURN(const HeldOut rows, FindHeldOut(model, request));
  const FolderBeside between(request.out, ".thimble-merged");
  const std::string merged = request.quantize.has_value() ? between.path() : out;
  // What the run trained for is quantised from what training quantised, and the step between is nothing it computed
  // with.
  const std::optional<Quantize4BitOptions> trained_for = QatScheme(model->recipe);
  const bool as_served = request.quantize.has_value() && trained_for.has_value() &&
                         request.quantize->format == trained_for->format &&
                         request.quantize->block_size == trained_for->block_size;
  ExportOptions merge = request.options;
  merge.exact_linears = as_served;
  RETURN_IF_ERROR(ExportMerged(model->decoder, model->store, model->Source(), merge, merged));
  std::unique_ptr<TrainedEngine> trained;
  if (rows.stream != nullptr) {
    trained = std::make_unique<TrainedEngine>(model, rows, request);
    if (!as_served) {
      RETURN_IF_ERROR(Measure(model, rows, request, trained->engine, merged, {"merged", report->dtype, {}}, report));
    }
  } else {
    report->not_measured = "no rows were given";
  }
  if (!request.quantize.has_value()) return absl::OkStatus();
  QuantizeFolderOptions options;
  options.quantize = *request.quantize;
  options.max_shard_bytes = request.options.max_shard_bytes;
  RETURN_IF_ERROR(QuantizeModelFolder(merged, out, options).status());
  report->dtype = std::string(SchemeName(request.quantize->format, request.quantize->block_size));
  if (trained == nullptr) return absl::OkStatus();
  return Measure(model, rows, request, trained->engine, out, {"quantised", report->dtype, {}}, report);
}

}  // namespace

absl::StatusOr<ExportReport> ExportModel(ModelSession* model, const ExportRequest& request) {
  if (model->config.ternary && request.quantize.has_value()) {
    return absl::InvalidArgumentError(
        "the formats of quantised weights are for full-precision ones, and this model's are ternary: export it as "
        "merged");
  }
  ExportReport report;
  report.path = request.out;
  report.adapter = request.adapter;
  report.dtype = request.options.dtype == TensorDType::kF32   ? "f32"
                 : request.options.dtype == TensorDType::kF16 ? "f16"
                                                              : "bf16";
  if (request.options.packed) report.dtype = "packed";
  report.gguf = request.gguf;
  if (model->base != nullptr) report.base = model->base->path();
  CountMerges(*model, &report);
  FolderBeside beside(request.out, ".thimble-new");
  if (request.adapter) {
    report.dtype = "f32";
    RETURN_IF_ERROR(WriteAdapter(*model, request, beside.path()));
    RETURN_IF_ERROR(MeasureAdapter(model, request, &report));
  } else {
    const auto write = request.gguf ? WriteGguf : WriteWeights;
    RETURN_IF_ERROR(write(model, request, beside.path(), &report));
    report.verdict = JudgeSteps(report.steps, request.options);
  }
  report.memory.Add(model->store);
  RETURN_IF_ERROR(CountFiles(beside.path(), &report));
  if (!report.verdict.ok()) return report;
  RETURN_IF_ERROR(
      WriteFileAtomically(beside.path() + "/quality.json", QualityJson(report, request.options).dump(2) + "\n"));
  RETURN_IF_ERROR(WriteFileAtomically(beside.path() + "/README.md", ModelCard(*model, report, request.options)));
  RETURN_IF_ERROR(beside.MoveTo(request.out));
  return report;
}

}  // namespace thimble
