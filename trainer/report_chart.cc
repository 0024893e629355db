// Scales, ticks and paths of a chart.
#include "trainer/report_chart.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace thimble {
namespace {

using Points = std::vector<std::pair<double, double>>;

constexpr double kLeft = 54, kRight = 20, kTop = 10, kBottom = 26;
constexpr size_t kMostPoints = 500;

bool IsFinite(const std::pair<double, double>& point) {
  return std::isfinite(point.first) && std::isfinite(point.second);
}

// Averages neighbours; a mean over a gap is a gap.
Points Thinned(const Points& points) {
  if (points.size() <= kMostPoints) return points;
  Points thinned;
  for (size_t bucket = 0; bucket < kMostPoints; ++bucket) {
    const size_t begin = bucket * points.size() / kMostPoints, end = (bucket + 1) * points.size() / kMostPoints;
    double x = 0, y = 0;
    for (size_t i = begin; i < end; ++i) {
      x += points[i].first;
      y += points[i].second;
    }
    thinned.push_back({x / static_cast<double>(end - begin), y / static_cast<double>(end - begin)});
  }
  return thinned;
}

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  void Include(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  double At(double value) const { return (value - low) / (high - low); }
};

// Of training curves the lowest and highest percent may lie outside, so that one spike does not flatten the rest.
Range YRange(const std::vector<ChartSeries>& series) {
  Range range;
  for (const ChartSeries& line : series) {
    std::vector<double> values;
    for (const auto& point : line.points) {
      if (IsFinite(point)) values.push_back(point.second);
    }
    if (values.empty()) continue;
    std::sort(values.begin(), values.end());
    const size_t spare = line.style == "held" ? 0 : values.size() / 100;
    range.Include(values[spare]);
    range.Include(values[values.size() - 1 - spare]);
  }
  const double margin =
      range.high > range.low ? 0.06 * (range.high - range.low) : std::max(0.5 * std::abs(range.high), 1e-3);
  const bool touches_zero = range.low >= 0 && range.low < margin;
  return {touches_zero ? 0 : range.low - margin, range.high + margin};
}

std::string TickText(double value) {
  const double size = std::abs(value);
  if (value != 0 && (size < 1e-3 || size >= 1e7)) return absl::StrFormat("%.1e", value);
  if (size >= 1e4) return absl::StrFormat("%gk", value / 1000);
  return absl::StrFormat("%g", value);
}

class Plot {
 public:
  Plot(double width, double height, Range x, Range y) : width_(width), height_(height), x_(x), y_(y) {}
  double X(double value) const { return kLeft + x_.At(value) * (width_ - kLeft - kRight); }
  double Y(double value) const { return height_ - kBottom - y_.At(value) * (height_ - kTop - kBottom); }

  std::string Axes() const {
    std::string svg;
    for (const double tick : RoundTicks(y_.low, y_.high, 5)) {
      absl::StrAppendFormat(&svg, "<line class=\"grid\" x1=\"%.0f\" x2=\"%.0f\" y1=\"%.1f\" y2=\"%.1f\"/>", kLeft,
                            width_ - kRight, Y(tick), Y(tick));
      absl::StrAppendFormat(&svg, "<text x=\"%.0f\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n", kLeft - 8, Y(tick) + 4,
                            TickText(tick));
    }
    for (const double tick : RoundTicks(x_.low, x_.high, width_ > 500 ? 8 : 4)) {
      if (tick != std::floor(tick)) continue;
      absl::StrAppendFormat(&svg, "<text x=\"%.1f\" y=\"%.0f\" text-anchor=\"middle\">%s</text>\n", X(tick),
                            height_ - 6, TickText(tick));
    }
    return svg;
  }

  std::string Line(const ChartSeries& series) const {
    std::string path, dots;
    bool pen_down = false;
    for (const auto& point : Thinned(series.points)) {
      if (!IsFinite(point)) {
        pen_down = false;
        continue;
      }
      absl::StrAppendFormat(&path, "%s%.1f %.1f", pen_down ? "L" : "M", X(point.first), Y(point.second));
      pen_down = true;
      if (series.dots) {
        absl::StrAppendFormat(&dots,
                              "<circle class=\"%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\"><title>step %.0f: %.4f</title>"
                              "</circle>",
                              series.style, X(point.first), Y(point.second), point.first, point.second);
      }
    }
    return absl::StrCat("<path class=\"", series.style, "\" d=\"", path, "\"/>", dots, "\n");
  }

 private:
  double width_, height_;
  Range x_, y_;
};

std::string Legend(const std::vector<ChartSeries>& series) {
  std::string html;
  for (const ChartSeries& line : series) {
    if (line.name.empty()) continue;
    absl::StrAppend(&html, "<span class=\"key ", line.style, "\">", HtmlEscaped(line.name), "</span>");
  }
  return html;
}

}  // namespace

std::vector<double> RoundTicks(double low, double high, int count) {
  std::vector<double> ticks;
  if (!(high > low) || count < 1 || !std::isfinite(high - low)) return ticks;
  const double raw = (high - low) / count;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  double step = 10 * power;
  for (const double factor : {5.0, 2.0, 1.0}) {
    if (factor * power >= raw * (1 - 1e-9)) step = factor * power;
  }
  for (double k = std::ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; ++k)
    ticks.push_back(k * step + 0.0);  // no -0
  return ticks;
}

std::string HtmlEscaped(const std::string& text) {
  return absl::StrReplaceAll(text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}

std::string ChartHtml(const Chart& chart) {
  Range x;
  std::vector<ChartSeries> series;
  for (const ChartSeries& line : chart.series) {
    bool has_points = false;
    for (const auto& point : line.points) {
      if (!IsFinite(point)) continue;
      has_points = true;
      x.Include(point.first);
    }
    if (has_points) series.push_back(line);
  }
  if (series.empty()) return "";
  if (x.high == x.low) x = {x.low - 1, x.high + 1};
  const double width = chart.wide ? 1040 : 336, height = chart.wide ? 300 : 190;
  const Plot plot(width, height, x, YRange(series));
  std::string html = absl::StrCat("<figure><figcaption><b>", HtmlEscaped(chart.title), "</b>",
                                  chart.unit.empty() ? "" : " <small>" + HtmlEscaped(chart.unit) + "</small>",
                                  Legend(series), "</figcaption>\n");
  absl::StrAppendFormat(&html, "<svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-label=\"%s\">\n", width, height,
                        HtmlEscaped(chart.title));
  absl::StrAppend(&html, plot.Axes());
  // A nested svg clips what lies outside the plot.
  absl::StrAppendFormat(&html,
                        "<svg x=\"%.0f\" y=\"%.0f\" width=\"%.0f\" height=\"%.0f\" viewBox=\"%.0f %.0f %.0f %.0f\">",
                        kLeft, kTop - 4, width - kLeft, height - kTop - kBottom + 8, kLeft, kTop - 4, width - kLeft,
                        height - kTop - kBottom + 8);
  for (const ChartSeries& line : series) absl::StrAppend(&html, plot.Line(line));
  return html + "</svg></svg></figure>\n";
}

}  // namespace thimble
