// The page of a comparison: a plot of quality against size and the table, without network.
#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "recipes/compare_models.h"
#include "trainer/report_chart.h"

namespace thimble {
namespace {

constexpr char kStyle[] = R"(
:root{color-scheme:light dark;--ground:#f6f7f9;--card:#fff;--text:#1c2430;--soft:#66707f;--line:#e3e7ec;--main:#2463d1}
@media(prefers-color-scheme:dark){:root{--ground:#12161c;--card:#1a2028;--text:#e4e9f0;--soft:#93a0b0;--line:#2b333e;
--main:#6ea2ff}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--text);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:980px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:26px;line-height:1.2;margin:0 0 4px}p.sub{color:var(--soft);margin:0 0 22px}
figure,table{background:var(--card);border:1px solid var(--line);border-radius:10px}
figure{margin:0 0 14px;padding:13px 16px 8px}figcaption{margin-bottom:6px}figcaption small{color:var(--soft)}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--soft);font-size:12px;font-variant-numeric:tabular-nums}svg text.name{fill:var(--text)}
.grid{stroke:var(--line)}circle{fill:var(--main)}
table{border-collapse:separate;border-spacing:0;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:6px 12px;text-align:right;border-top:1px solid var(--line)}
thead th{border-top:0;color:var(--soft);font-weight:500;font-size:13px}
th:nth-child(-n+2),td:nth-child(-n+2){text-align:left}
)";

constexpr double kWidth = 900, kHeight = 400, kLeft = 64, kRight = 24, kTop = 16, kBottom = 44;

struct Point {
  double size, quality;  // MiB, and what the y axis shows
  std::string name;
};

std::string Number(double value) {
  const double size = std::abs(value);
  return size != 0 && (size < 1e-3 || size >= 1e6) ? absl::StrFormat("%.0e", value) : absl::StrFormat("%g", value);
}

// A scale with room on both sides; with `log` the values are powers of ten.
class Scale {
 public:
  Scale(double low, double high, double begin, double end, bool log) : begin_(begin), end_(end), log_(log) {
    low_ = log ? std::log10(low) : low;
    high_ = log ? std::log10(high) : high;
    const double room = high_ > low_ ? 0.08 * (high_ - low_) : std::max(0.1 * std::abs(high_), 0.1);
    low_ = !log && low_ >= 0 ? std::max(0.0, low_ - room) : low_ - room;
    high_ += room;
  }
  double At(double value) const {
    return begin_ + ((log_ ? std::log10(value) : value) - low_) / (high_ - low_) * (end_ - begin_);
  }
  std::vector<double> Ticks() const {
    if (!log_) return RoundTicks(low_, high_, 6);
    std::vector<double> ticks;
    for (double power = std::ceil(low_); power <= high_; ++power) {
      ticks.push_back(std::pow(10, power));
    }
    // Within one power of ten, its multiples.
    for (int i = 2; ticks.size() < 2 && i < 10; ++i) {
      const double tick = i * std::pow(10, std::floor(low_));
      if (std::log10(tick) > low_ && std::log10(tick) < high_) ticks.push_back(tick);
    }
    return ticks;
  }

 private:
  double begin_, end_, low_, high_;
  bool log_;
};

std::string Axes(const Scale& x, const Scale& y) {
  std::string svg;
  for (const double tick : y.Ticks()) {
    absl::StrAppendFormat(&svg, "<line class=\"grid\" x1=\"%.0f\" x2=\"%.0f\" y1=\"%.1f\" y2=\"%.1f\"/>", kLeft,
                          kWidth - kRight, y.At(tick), y.At(tick));
    absl::StrAppendFormat(&svg, "<text x=\"%.0f\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n", kLeft - 8,
                          y.At(tick) + 4, Number(tick));
  }
  for (const double tick : x.Ticks()) {
    absl::StrAppendFormat(&svg, "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.0f\" y2=\"%.0f\"/>", x.At(tick),
                          x.At(tick), kTop, kHeight - kBottom);
    absl::StrAppendFormat(&svg, "<text x=\"%.1f\" y=\"%.0f\" text-anchor=\"middle\">%s</text>\n", x.At(tick),
                          kHeight - kBottom + 18, Number(tick));
  }
  absl::StrAppendFormat(&svg, "<text x=\"%.0f\" y=\"%.0f\" text-anchor=\"end\">size of the weights, MiB</text>\n",
                        kWidth - kRight, kHeight - 6);
  return svg;
}

std::string Scatter(const std::string& title, const std::string& unit, std::vector<Point> points, bool log) {
  if (points.empty()) return "";
  std::sort(points.begin(), points.end(), [](const Point& a, const Point& b) { return a.size < b.size; });
  double low = points[0].quality, high = low;
  for (const Point& point : points) {
    low = std::min(low, point.quality);
    high = std::max(high, point.quality);
  }
  const Scale x(points.front().size, points.back().size, kLeft, kWidth - kRight, false);
  const Scale y(low, high, kHeight - kBottom, kTop, log);
  std::string svg = Axes(x, y);
  std::vector<std::pair<double, double>> labels;  // where they are, so that none lies on another
  for (const Point& point : points) {
    const double px = x.At(point.size), py = y.At(point.quality);
    const bool left = px > kWidth - 160;
    double label = py + 4;
    for (size_t i = 0; i < labels.size(); ++i) {
      if (std::abs(labels[i].first - px) < 120 && std::abs(labels[i].second - label) < 13) {
        label = labels[i].second + 13;
        i = static_cast<size_t>(-1);  // look at all again
      }
    }
    labels.push_back({px, label});
    absl::StrAppendFormat(&svg, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"5\"><title>%s: %.1f MiB, %g</title></circle>", px,
                          py, HtmlEscaped(point.name), point.size, point.quality);
    absl::StrAppendFormat(&svg, "<text class=\"name\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n",
                          left ? px - 9 : px + 9, label, left ? "end" : "start", HtmlEscaped(point.name));
  }
  return absl::StrFormat(
      "<figure><figcaption><b>%s</b> <small>%s</small></figcaption>\n<svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" "
      "aria-label=\"%s against size\">\n%s</svg></figure>\n",
      title, unit, kWidth, kHeight, title, svg);
}

std::string Cell(const std::string& text) { return absl::StrCat("<td>", text, "</td>"); }

std::string TableRow(const ComparedModel& model, const Evaluation& first) {
  const Evaluation& e = model.evaluation;
  std::string html = absl::StrCat("<tr>", Cell(HtmlEscaped(model.name)), Cell(model.format));
  html += Cell(absl::StrFormat("%.2f", model.bits_per_weight()));
  html += Cell(absl::StrFormat("%.1f", static_cast<double>(model.file_bytes) / (1 << 20)));
  if (first.scored) {
    html += Cell(absl::StrFormat("%.4f", std::exp(e.loss)));
    const DivergenceFigures& d = e.divergence;
    html += Cell(e.compared ? absl::StrFormat("%.3g", d.mean_kl) : "reference");
    html += Cell(e.compared ? absl::StrFormat("%.3g", Percentile(d.kl, 0.99)) : "");
    html += Cell(e.compared ? absl::StrFormat("%.2f%%", 100 * d.top1_agreement) : "");
  }
  for (const TaskFigures& task : e.tasks) {
    html += Cell(absl::StrFormat("%.1f%%",
                                 100.0 * static_cast<double>(task.correct_norm) / static_cast<double>(task.questions)));
  }
  if (first.scored) {
    html += Cell(absl::StrFormat("%.0f", static_cast<double>(e.tokens) / std::max(e.model_seconds, 1e-9)));
  }
  return html + "</tr>\n";
}

}  // namespace

std::string ComparisonPage(const Comparison& comparison) {
  std::vector<Point> divergence, perplexity;
  for (const ComparedModel& model : comparison.models) {
    const Evaluation& e = model.evaluation;
    const double size = static_cast<double>(model.file_bytes) / (1 << 20);
    if (e.scored) perplexity.push_back({size, std::exp(e.loss), model.name});
    if (e.compared && e.divergence.mean_kl > 0) divergence.push_back({size, e.divergence.mean_kl, model.name});
  }
  const Evaluation none;
  const Evaluation& first = comparison.models.empty() ? none : comparison.models[0].evaluation;
  std::string head = "<th>model</th><th>format</th><th>bits a weight</th><th>MiB</th>";
  if (first.scored) head += "<th>perplexity</th><th>mean KL</th><th>KL 99%</th><th>same top token</th>";
  for (const TaskFigures& task : first.tasks) {
    absl::StrAppend(&head, "<th>", HtmlEscaped(task.file.substr(task.file.find_last_of('/') + 1)), "</th>");
  }
  if (first.scored) head += "<th>tokens/s</th>";
  std::string rows;
  for (const ComparedModel& model : comparison.models) rows += TableRow(model, first);
  std::string sub = absl::StrCat("Against ", HtmlEscaped(comparison.reference));
  if (first.scored) absl::StrAppend(&sub, ", over ", first.tokens, " tokens, ", first.targets, " of them scored");
  return absl::StrCat(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Comparison</title>\n<style>", kStyle,
      "</style></head>\n<body><main><h1>Quality against size</h1><p class=\"sub\">", sub, "</p>\n",
      Scatter("Mean KL divergence", "from the reference, nats a token; lower is better", divergence, /*log=*/true),
      Scatter("Perplexity", "lower is better", perplexity, /*log=*/false), "<table><thead><tr>", head,
      "</tr></thead><tbody>\n", rows, "</tbody></table></main></body></html>\n");
}

}  // namespace thimble
