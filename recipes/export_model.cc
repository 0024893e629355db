// Export with read-back.
#include "recipes/export_model.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "data/tensor_file.h"
#include "ops/check.h"
#include "recipes/recipe_options.h"
#include "recipes/run_summary.h"
#include "recipes/text_layout.h"
#include "trainer/engine.h"
#include "trainer/run_plan.h"

namespace thimble {
namespace {

namespace fs = std::filesystem;

// Removes what it names unless the export was put in its place.
class FolderBeside {
 public:
  explicit FolderBeside(const std::string& out) : path_(out + ".thimble-new") { Remove(); }
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
  rows.description = absl::StrJoin(files, ", ");
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
      if (!Is4Bit(format)) continue;
      ++report->decoded;
      report->block_type = std::string(InfoOf(format).name);
    }
  }
}

absl::Status CountFiles(const std::string& folder, ExportReport* report) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    if (entry.path().extension() != ".safetensors") continue;
    ASSIGN_OR_RETURN(const std::unique_ptr<TensorFile> file, TensorFile::Open(entry.path().string()));
    report->tensors += static_cast<int64_t>(file->tensors().size());
    report->bytes += static_cast<int64_t>(fs::file_size(entry.path(), error));
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

absl::Status Measure(ModelSession* model, const HeldOut& rows, const ExportRequest& request, const std::string& folder,
                     ExportReport* report) {
  std::unique_ptr<Engine> made;
  if (request.engine == nullptr) {
    EngineOptions options;
    options.train = false;
    options.loss.compute = model->decoder.compute;
    options.max_tokens = rows.stream->max_batch_tokens();
    made = std::make_unique<Engine>(&model->decoder, &model->store, options);
  }
  Engine* engine = made != nullptr ? made.get() : request.engine;
  ASSIGN_OR_RETURN(report->quality, CompareWithExport(engine, folder, rows.stream, request.max_batches,
                                                      model->recipe.memory().spill_folder()));
  report->memory.Add(*engine);
  report->memory.planned += report->quality.planned_bytes;
  report->memory.measured += report->quality.measured_bytes;
  report->measured = true;
  report->compared_over = rows.description;
  report->verdict = JudgeExport(report->quality, request.options);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ExportReport> ExportModel(ModelSession* model, const ExportRequest& request) {
  ExportReport report;
  report.path = request.out;
  report.adapter = request.adapter;
  report.dtype = request.options.dtype == TensorDType::kF32   ? "f32"
                 : request.options.dtype == TensorDType::kF16 ? "f16"
                                                              : "bf16";
  if (model->base != nullptr) report.base = model->base->path();
  CountMerges(*model, &report);
  FolderBeside beside(request.out);
  if (request.adapter) {
    report.dtype = "f32";
    RETURN_IF_ERROR(ExportPeft(model->decoder, model->store, model->Source(), beside.path()));
    RETURN_IF_ERROR(CheckAdapter(model->store, beside.path()));
  } else {
    // First: missing rows should not cost the time of an export.
    ASSIGN_OR_RETURN(const HeldOut rows, FindHeldOut(model, request));
    RETURN_IF_ERROR(ExportMerged(model->decoder, model->store, model->Source(), request.options, beside.path()));
    if (rows.stream != nullptr) RETURN_IF_ERROR(Measure(model, rows, request, beside.path(), &report));
  }
  report.memory.Add(model->store);
  RETURN_IF_ERROR(CountFiles(beside.path(), &report));
  if (report.verdict.ok()) RETURN_IF_ERROR(beside.MoveTo(request.out));
  return report;
}

std::string FormatExportReport(const ExportReport& report, const ExportOptions& limits) {
  std::string text;
  const std::string base = report.base.empty() ? "a model trained from scratch" : report.base;
  if (report.adapter) {
    absl::StrAppend(&text, "Adapter of ", base, ": ", report.tensors,
                    " tensors in f32, read back and equal to the trained ones bit for bit\n");
  } else {
    if (report.decoded > 0) {
      absl::StrAppend(&text, "Decoded ", report.decoded, " linear layers exactly from ", report.block_type, " of ",
                      base, "\n");
    } else {
      absl::StrAppend(&text, "Weights of ", base, "\n");
    }
    if (report.merged > 0) {
      absl::StrAppend(&text, "Merged the adapter into ", report.merged, " linear layers in f32, rounded once to ",
                      report.dtype, "\n");
    }
  }
  if (report.measured) {
    AppendWrapped(absl::StrFormat("Read back over %d tokens of %s:", report.quality.tokens, report.compared_over), 0,
                  &text);
    absl::StrAppendFormat(&text, "  mean KL          %.3g nats (limit %.3g), most %.3g\n", report.quality.mean_kl,
                          limits.max_kl, report.quality.max_kl);
    absl::StrAppendFormat(&text, "  same top token   %.2f%% (limit %.2f%%)\n", 100 * report.quality.agreement,
                          100 * limits.min_agreement);
  } else if (!report.adapter) {
    absl::StrAppend(&text, "Not compared with the model: give rows with --data=FILE\n");
  }
  absl::StrAppend(&text, "Device memory: planned ", MiBText(report.memory.planned), ", measured ",
                  MiBText(report.memory.measured), "\n");
  if (report.verdict.ok()) {
    absl::StrAppend(&text, "Wrote ", report.path, ": ", report.tensors, " tensors, ", report.dtype, ", ",
                    MiBText(report.bytes), "\n");
  }
  return text;
}

nlohmann::ordered_json ExportReportJson(const ExportReport& report) {
  nlohmann::ordered_json json;
  json["path"] = report.path;
  json["format"] = report.adapter ? "peft" : "safetensors";
  json["dtype"] = report.dtype;
  json["base"] = nullptr;
  if (!report.base.empty()) json["base"] = report.base;
  json["tensors"] = report.tensors;
  json["bytes"] = report.bytes;
  json["merged_layers"] = report.merged;
  json["decoded_layers"] = report.decoded;
  json["decoded_format"] = nullptr;
  if (report.decoded > 0) json["decoded_format"] = report.block_type;
  json["memory"] = {{"planned_bytes", report.memory.planned}, {"measured_bytes", report.memory.measured}};
  json["accepted"] = report.verdict.ok();
  json["quality"] = nullptr;
  if (report.measured) {
    json["quality"] = {{"mean_kl", report.quality.mean_kl},
                       {"max_kl", report.quality.max_kl},
                       {"agreement", report.quality.agreement},
                       {"tokens", report.quality.tokens},
                       {"rows", report.compared_over}};
  }
  return json;
}

}  // namespace thimble
