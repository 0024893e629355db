// The log of a run: progress on standard error, metrics.jsonl, TensorBoard events and report.html in its folder.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "trainer/metrics.h"
#include "trainer/report.h"
#include "trainer/tensorboard_writer.h"

namespace thimble {

struct RunLogOptions {
  std::string folder;  // exists
  int64_t total_steps = 0;
  int64_t resumed_step = 0;  // 0: a new run; else what the folder says of later steps is cut off
  int64_t log_every = 1;     // steps between lines; evaluations are always logged
  bool tensorboard = true;
  std::FILE* progress = stderr;
};

// Not for several threads at once. On a terminal the progress line is rewritten in place, elsewhere it is one line
// after another.
class RunLog {
 public:
  // A new run starts metrics.jsonl anew; a resumed one cuts it (CutMetrics) and goes on.
  static absl::StatusOr<std::unique_ptr<RunLog>> Open(const RunLogOptions& options);
  ~RunLog();
  RunLog(const RunLog&) = delete;
  RunLog& operator=(const RunLog&) = delete;

  // Errors are those of writing the files, with the system's reason.
  absl::Status Step(const StepMetrics& metrics);
  absl::Status Eval(const EvalMetrics& metrics);
  absl::Status Sample(const SampleAnswer& sample);
  // Makes what was written to metrics.jsonl last through a power cut.
  absl::Status Sync();
  // A line of text above the progress line.
  void Note(const std::string& text);

  // report.html, from all of metrics.jsonl.
  absl::Status WriteReport(const RunReport& report) const;
  const std::string& metrics_path() const { return metrics_path_; }

 private:
  RunLog(const RunLogOptions& options, std::string metrics_path, std::FILE* metrics_file);
  absl::Status AppendMetrics(const std::string& line);
  void ClearProgress();
  double SecondsLeft(const StepMetrics& metrics);

  RunLogOptions options_;
  std::string metrics_path_;
  std::FILE* metrics_file_;
  std::unique_ptr<TensorBoardWriter> tensorboard_;
  bool terminal_ = false;
  bool progress_shown_ = false;
  double seconds_per_step_ = 0;  // smoothed; 0: no step yet
};

}  // namespace thimble
