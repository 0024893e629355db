// report.html: how a run went, on one page that needs no network.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "trainer/metrics.h"
#include "trainer/report_chart.h"

namespace thimble {

struct ReportTable {
  std::string title;
  std::vector<std::string> columns;  // the first is left-aligned, the others right
  std::vector<std::vector<std::string>> rows;
};

// What metrics.jsonl does not hold. All texts are plain and may be empty.
struct RunReport {
  std::string title;                                       // "QLoRA of SmolLM2-135M"
  std::string subtitle;                                    // when, where, how it ended
  std::vector<std::pair<std::string, std::string>> facts;  // name, value: tiles beside those from the metrics
  std::vector<ReportTable> tables;                         // the memory plan, loss before and after, ...
  std::vector<Chart> charts;                               // below those from the metrics
  std::string settings;                                    // the resolved recipe
};

// Curves of training and validation loss, learning rate, gradient norm and tokens/s; tiles; tables; sample answers;
// settings. Light or dark as the reader's system is.
std::string ReportHtml(const RunReport& report, const MetricsHistory& history);

}  // namespace thimble
