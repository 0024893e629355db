// metrics.jsonl: writing, reading, cutting.
#include "trainer/metrics.h"

#include <cmath>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "data/file.h"
#include "ops/check.h"

namespace thimble {
namespace {

using Json = nlohmann::ordered_json;

std::string Line(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n"; }

double Number(const Json& json, const char* key) {
  const auto found = json.find(key);
  return found != json.end() && found->is_number() ? found->get<double>() : std::numeric_limits<double>::quiet_NaN();
}

int64_t Integer(const Json& json, const char* key) {
  const auto found = json.find(key);
  return found != json.end() && found->is_number_integer() ? found->get<int64_t>() : 0;
}

std::string Text(const Json& json, const char* key) {
  const auto found = json.find(key);
  return found != json.end() && found->is_string() ? found->get<std::string>() : "";
}

// Calls `line` with every whole line, its text and its JSON.
absl::Status ForEachLine(const std::string& path, const std::string& content,
                         const std::function<void(const std::string& text, const Json& json)>& line) {
  int64_t number = 1;
  for (size_t begin = 0; begin < content.size(); ++number) {
    const size_t end = content.find('\n', begin);
    if (end == std::string::npos) break;
    const std::string text = content.substr(begin, end - begin);
    const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer()) {
      return absl::DataLossError(
          absl::StrCat(path, ":", number, ": found a line that is not of a run's metrics; remove it to go on"));
    }
    line(text, json);
    begin = end + 1;
  }
  return absl::OkStatus();
}

}  // namespace

std::string MetricsLine(const StepMetrics& metrics) {
  return Line(Json{{"step", metrics.step},
                   {"epoch", metrics.epoch},
                   {"loss", metrics.loss},
                   {"learning_rate", metrics.learning_rate},
                   {"grad_norm", metrics.grad_norm},
                   {"tokens", metrics.tokens},
                   {"targets", metrics.targets},
                   {"tokens_per_second", metrics.TokensPerSecond()},
                   {"seconds", metrics.seconds},
                   {"device_bytes", metrics.device_bytes},
                   {"process_bytes", metrics.process_bytes}});
}

std::string MetricsLine(const EvalMetrics& metrics) {
  return Line(Json{{"step", metrics.step},
                   {"eval_loss", metrics.loss},
                   {"eval_perplexity", std::exp(metrics.loss)},
                   {"eval_targets", metrics.targets},
                   {"eval_seconds", metrics.seconds},
                   {"best", metrics.best}});
}

std::string MetricsLine(const SampleAnswer& sample) {
  return Line(Json{{"step", sample.step}, {"prompt", sample.prompt}, {"answer", sample.answer}});
}

absl::StatusOr<MetricsHistory> ReadMetrics(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string content, ReadFile(path));
  MetricsHistory history;
  RETURN_IF_ERROR(ForEachLine(path, content, [&history](const std::string&, const Json& json) {
    const int64_t step = Integer(json, "step");
    if (json.contains("eval_loss")) {
      const bool best = json.contains("best") && json["best"] == true;
      history.evals.push_back(
          {step, Number(json, "eval_loss"), Integer(json, "eval_targets"), Number(json, "eval_seconds"), best});
    } else if (json.contains("answer")) {
      history.samples.push_back({step, Text(json, "prompt"), Text(json, "answer")});
    } else {
      history.steps.push_back({step, Number(json, "epoch"), Number(json, "loss"), Number(json, "learning_rate"),
                               Number(json, "grad_norm"), Integer(json, "tokens"), Integer(json, "targets"),
                               Number(json, "seconds"), Integer(json, "device_bytes"), Integer(json, "process_bytes")});
    }
  }));
  return history;
}

absl::Status CutMetrics(const std::string& path, int64_t step) {
  const absl::StatusOr<std::string> content = ReadFile(path);
  if (absl::IsNotFound(content.status())) return absl::OkStatus();
  RETURN_IF_ERROR(content.status());
  std::string kept;
  RETURN_IF_ERROR(ForEachLine(path, *content, [&kept, step](const std::string& text, const Json& json) {
    if (Integer(json, "step") <= step) kept += text + "\n";
  }));
  return kept == *content ? absl::OkStatus() : WriteFileAtomically(path, kept);
}

}  // namespace thimble
