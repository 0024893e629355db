// Line charts as inline SVG.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace thimble {

struct ChartSeries {
  std::string name;
  std::string style;                              // CSS class of the line: "raw", "main" or "held"
  std::vector<std::pair<double, double>> points;  // x ascending; those that are not finite leave a gap
  bool dots = false;
};

struct Chart {
  std::string title;
  std::string unit;  // of y; may be empty
  std::vector<ChartSeries> series;
  bool wide = false;  // three times as wide as others
};

// A <figure> with title, legend, axes and lines; long series are averaged down to what the width shows. Empty series
// are left out; a chart without points is "".
std::string ChartHtml(const Chart& chart);

// At most `count` + 1 round numbers (1, 2 or 5 times a power of ten apart) that lie in [low, high].
std::vector<double> RoundTicks(double low, double high, int count);

// Text with the characters that HTML reserves replaced.
std::string HtmlEscaped(const std::string& text);

}  // namespace thimble
