#include "recipes/quantize_calibrated.h"

#include <algorithm>
#include <map>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "ops/check.h"
#include "recipes/evaluate.h"
#include "recipes/evaluation_parts.h"
#include "recipes/session.h"
#include "trainer/gptq_model.h"

namespace thimble {
namespace {

constexpr int64_t kWindow = 512;  // tokens of a text that are read together

absl::StatusOr<std::vector<Batch>> CalibrationBatches(const ModelSession& model,
                                                      const CalibrationOptions& calibration) {
  EvaluationOptions options = EvaluationOptionsOf(model);
  options.data.files = calibration.files;
  options.chat_format = calibration.chat_format;
  if (options.chat_format == "auto" && model.tokens.chat_template.empty()) options.chat_format = "plain";
  options.batch_tokens = kWindow;
  ASSIGN_OR_RETURN(const EvaluationRows rows, ReadEvaluationRows(model, options));
  const int64_t most = model.decoder.config.max_position;
  if (rows.form == RowForm::kText) options.context = std::min(kWindow, most);
  ASSIGN_OR_RETURN(BatchStream stream, PackEvaluationRows(rows, options, most));
  std::vector<Batch> batches;
  int64_t tokens = 0;
  for (int64_t i = 0; i < stream.batches_per_epoch() && tokens < calibration.tokens; ++i) {
    RETURN_IF_ERROR(stream.Next(&batches.emplace_back()));
    tokens += static_cast<int64_t>(batches.back().tokens.size());
  }
  return batches;
}

}  // namespace

absl::StatusOr<TensorCounts> QuantizeModelCalibrated(const std::string& in, const std::string& out,
                                                     const QuantizeFolderOptions& options,
                                                     const CalibrationOptions& calibration) {
  ASSIGN_OR_RETURN(const std::unique_ptr<ModelSession> model, OpenModel(in, /*best=*/false));
  ASSIGN_OR_RETURN(const std::vector<Batch> batches, CalibrationBatches(*model, calibration));
  std::map<std::string, QuantizedWeight> weights;
  RETURN_IF_ERROR(QuantizeByGptq(model->decoder, &model->store, batches, options.quantize, calibration.gptq,
                                 [&weights](const LinearWeights& linear, const QuantizedWeight& weight) {
                                   weights[linear.name + ".weight"] = weight;
                                   return absl::OkStatus();
                                 }));
  QuantizeFolderOptions how = options;
  how.quantizer = [&weights](const TensorRef& tensor) -> absl::StatusOr<BnbWeight> {
    const auto found = weights.find(tensor.info->name);
    if (found == weights.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat(tensor.file->path(), ": tensor \"", tensor.info->name, "\" is no linear layer of the model"));
    }
    BnbWeight weight;
    weight.dtype = tensor.info->dtype;
    weight.weight = std::move(found->second);
    return weight;
  };
  return QuantizeModelFolder(in, out, how);
}

}  // namespace thimble
