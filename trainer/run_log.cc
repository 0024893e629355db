// Sends every metric to where it is kept and shown.
#include "trainer/run_log.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "data/file.h"
#include "ops/check.h"
#include "trainer/progress_line.h"

namespace thimble {
namespace {

constexpr int kPlainColumns = 80;

// One less than the terminal has: writing the last column would wrap.
int Columns(std::FILE* file) {
  struct winsize size;
  if (::ioctl(::fileno(file), TIOCGWINSZ, &size) != 0 || size.ws_col < 2) return kPlainColumns - 1;
  return std::min<int>(size.ws_col - 1, kPlainColumns - 1);
}

}  // namespace

RunLog::RunLog(const RunLogOptions& options, std::string metrics_path, std::FILE* metrics_file)
    : options_(options),
      metrics_path_(std::move(metrics_path)),
      metrics_file_(metrics_file),
      terminal_(::isatty(::fileno(options.progress)) == 1) {}

absl::StatusOr<std::unique_ptr<RunLog>> RunLog::Open(const RunLogOptions& options) {
  CHECK_GE(options.log_every, 1);
  const std::string path = (std::filesystem::path(options.folder) / "metrics.jsonl").string();
  if (options.resumed_step > 0) RETURN_IF_ERROR(CutMetrics(path, options.resumed_step));
  std::FILE* file = std::fopen(path.c_str(), options.resumed_step > 0 ? "ae" : "we");
  if (file == nullptr) return ErrnoStatus("create", path);
  std::unique_ptr<RunLog> log(new RunLog(options, path, file));
  if (options.tensorboard) {
    ASSIGN_OR_RETURN(log->tensorboard_, TensorBoardWriter::Open(options.folder, options.resumed_step + 1));
  }
  return log;
}

RunLog::~RunLog() {
  if (terminal_ && progress_shown_) std::fputs("\n", options_.progress);
  std::fclose(metrics_file_);
}

absl::Status RunLog::AppendMetrics(const std::string& line) {
  if (std::fwrite(line.data(), 1, line.size(), metrics_file_) != line.size() || std::fflush(metrics_file_) != 0) {
    return ErrnoStatus("write", metrics_path_);
  }
  return absl::OkStatus();
}

absl::Status RunLog::Sync() {
  // Pipes and special files cannot be synced, which is no fault of theirs.
  if (::fsync(::fileno(metrics_file_)) != 0 && errno != EINVAL) return ErrnoStatus("write", metrics_path_);
  return absl::OkStatus();
}

void RunLog::ClearProgress() {
  if (terminal_ && progress_shown_) std::fputs("\r\x1b[K", options_.progress);
  progress_shown_ = false;
}

double RunLog::SecondsLeft(const StepMetrics& metrics) {
  constexpr double kSmoothing = 0.1;  // about the last ten steps
  seconds_per_step_ =
      seconds_per_step_ == 0 ? metrics.seconds : (1 - kSmoothing) * seconds_per_step_ + kSmoothing * metrics.seconds;
  return seconds_per_step_ * static_cast<double>(std::max<int64_t>(0, options_.total_steps - metrics.step));
}

absl::Status RunLog::Step(const StepMetrics& metrics) {
  const double seconds_left = SecondsLeft(metrics);
  if (metrics.step % options_.log_every != 0 && metrics.step != options_.total_steps) return absl::OkStatus();
  const int columns = terminal_ ? Columns(options_.progress) : kPlainColumns;
  const std::string text = ProgressText(metrics, options_.total_steps, seconds_left, columns);
  if (terminal_) {
    std::fprintf(options_.progress, "\r%s\x1b[K", text.c_str());
    progress_shown_ = true;
  } else {
    std::fprintf(options_.progress, "%s\n", text.c_str());
  }
  std::fflush(options_.progress);
  RETURN_IF_ERROR(AppendMetrics(MetricsLine(metrics)));
  if (tensorboard_ == nullptr) return absl::OkStatus();
  return tensorboard_->Write(metrics.step, {{"train/loss", metrics.loss},
                                            {"train/learning_rate", metrics.learning_rate},
                                            {"train/grad_norm", metrics.grad_norm},
                                            {"train/tokens_per_second", metrics.TokensPerSecond()}});
}

absl::Status RunLog::Eval(const EvalMetrics& metrics) {
  Note(absl::StrFormat("step %d  validation loss %.4f  perplexity %.2f  %d targets  %s%s", metrics.step, metrics.loss,
                       std::exp(metrics.loss), metrics.targets, DurationText(metrics.seconds),
                       metrics.best ? "  (best)" : ""));
  RETURN_IF_ERROR(AppendMetrics(MetricsLine(metrics)));
  if (tensorboard_ == nullptr) return absl::OkStatus();
  return tensorboard_->Write(metrics.step, {{"eval/loss", metrics.loss}, {"eval/perplexity", std::exp(metrics.loss)}});
}

absl::Status RunLog::Sample(const SampleAnswer& sample) {
  Note(absl::StrCat("step ", sample.step, "  ", sample.prompt, "\n    -> ", sample.answer));
  return AppendMetrics(MetricsLine(sample));
}

void RunLog::Note(const std::string& text) {
  ClearProgress();
  std::fprintf(options_.progress, "%s\n", text.c_str());
  std::fflush(options_.progress);
}

absl::Status RunLog::WriteReport(const RunReport& report) const {
  ASSIGN_OR_RETURN(const MetricsHistory history, ReadMetrics(metrics_path_));
  const std::string path = (std::filesystem::path(options_.folder) / "report.html").string();
  return WriteFileAtomically(path, ReportHtml(report, history));
}

}  // namespace thimble
