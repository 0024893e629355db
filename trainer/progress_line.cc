// Formatting of the progress line.
#include "trainer/progress_line.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace thimble {

std::string DurationText(double seconds) {
  if (!(seconds >= 0)) return "?";
  const int64_t total = std::llround(std::min(seconds, 1e12));
  if (total < 60) return absl::StrCat(total, "s");
  if (total < 3600) return absl::StrFormat("%dm%02ds", total / 60, total % 60);
  if (total < 86400) return absl::StrFormat("%dh%02dm", total / 3600, total % 3600 / 60);
  return absl::StrFormat("%dd%02dh", total / 86400, total % 86400 / 3600);
}

std::string MemoryText(int64_t bytes) {
  const double mib = static_cast<double>(bytes) / (1 << 20);
  return mib < 1000 ? absl::StrFormat("%.0f MiB", mib) : absl::StrFormat("%.1f GiB", mib / 1024);
}

std::string ProgressText(const StepMetrics& metrics, int64_t total_steps, double seconds_left, int columns) {
  struct Item {
    int rank;  // the highest goes first when space is short
    std::string text;
  };
  const std::string total = absl::StrCat(total_steps);
  std::vector<Item> items = {
      {0, absl::StrFormat("%*d/%s", static_cast<int>(total.size()), metrics.step, total)},
      {1, absl::StrFormat("loss %.4f", metrics.loss)},
      {6, absl::StrFormat("lr %.1e", metrics.learning_rate)},
      {5, absl::StrFormat("norm %.2f", metrics.grad_norm)},
      {3, absl::StrFormat("%.0f tok/s", metrics.TokensPerSecond())},
  };
  if (metrics.process_bytes > 0) items.push_back({4, MemoryText(metrics.process_bytes)});
  if (seconds_left >= 0) items.push_back({2, DurationText(seconds_left) + " left"});
  while (true) {
    std::string line;
    for (const Item& item : items) absl::StrAppend(&line, line.empty() ? "" : "  ", item.text);
    if (static_cast<int>(line.size()) <= columns || items.size() == 1) return line.substr(0, std::max(columns, 0));
    items.erase(
        std::max_element(items.begin(), items.end(), [](const Item& a, const Item& b) { return a.rank < b.rank; }));
  }
}

}  // namespace thimble
