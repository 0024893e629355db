// The page around the charts.
#include "trainer/report.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "trainer/progress_line.h"
#include "trainer/report_chart.h"

namespace thimble {
namespace {

constexpr char kStyle[] = R"(
:root{color-scheme:light dark;--ground:#f6f7f9;--card:#fff;--text:#1c2430;--soft:#66707f;--line:#e3e7ec;
--main:#2463d1;--raw:#a9c3ee;--held:#d9622b}
@media(prefers-color-scheme:dark){:root{--ground:#12161c;--card:#1a2028;--text:#e4e9f0;--soft:#93a0b0;--line:#2b333e;
--main:#6ea2ff;--raw:#36507c;--held:#ff9360}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--text);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1080px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:26px;line-height:1.2;margin:0 0 4px}h2{font-size:17px;margin:32px 0 10px}
p.sub{color:var(--soft);margin:0 0 22px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin-bottom:14px}
.tile,figure,table,pre,.sample{background:var(--card);border:1px solid var(--line);border-radius:10px}
.tile{padding:11px 14px}.tile span{display:block;color:var(--soft);font-size:13px}
.tile b{font-size:19px;font-weight:600;font-variant-numeric:tabular-nums}
.charts{display:grid;grid-template-columns:repeat(3,minmax(0,1fr));gap:14px}
.charts figure:first-child{grid-column:1/-1}
@media(max-width:860px){.charts{grid-template-columns:1fr}}
figure{margin:0;padding:13px 16px 8px}figcaption{margin-bottom:6px}figcaption small{color:var(--soft)}
.key{float:right;margin-left:16px;font-size:13px;color:var(--soft)}
.key:before{content:"";display:inline-block;width:16px;height:3px;border-radius:2px;margin-right:6px;
vertical-align:middle;background:var(--main)}
.key.raw:before{background:var(--raw)}.key.held:before{background:var(--held)}
svg{display:block;width:100%;height:auto}svg svg{width:auto}
svg text{fill:var(--soft);font-size:12px;font-variant-numeric:tabular-nums}
.grid{stroke:var(--line)}path{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
path.raw{stroke:var(--raw);stroke-width:1.3}path.main{stroke:var(--main)}path.held{stroke:var(--held)}
circle.held{fill:var(--held)}
table{border-collapse:separate;border-spacing:0;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:6px 14px;text-align:right;border-top:1px solid var(--line)}
thead th{border-top:0;color:var(--soft);font-weight:500;font-size:13px}
th:first-child,td:first-child{text-align:left}
pre{padding:14px 16px;overflow-x:auto;font:13px/1.5 ui-monospace,"SF Mono",Menlo,Consolas,monospace;margin:0}
.sample{padding:11px 14px;margin-bottom:10px}.sample span{color:var(--soft);font-size:13px;white-space:pre-wrap}
.sample p{margin:4px 0 0;white-space:pre-wrap}
details summary{cursor:pointer}
)";

using Points = std::vector<std::pair<double, double>>;

Points PointsOf(const std::vector<StepMetrics>& steps, double (*value)(const StepMetrics&)) {
  Points points;
  for (const StepMetrics& step : steps) points.push_back({static_cast<double>(step.step), value(step)});
  return points;
}

// Exponential mean over about a thirtieth of the run, which starts unbiased.
Points Smoothed(const Points& points) {
  const double keep = 1 - 1 / std::max(1.0, static_cast<double>(points.size()) / 30);
  double sum = 0, weight = 0;
  Points smooth;
  for (const auto& [x, y] : points) {
    if (!std::isfinite(y)) continue;
    sum = keep * sum + y;
    weight = keep * weight + 1;
    smooth.push_back({x, sum / weight});
  }
  return smooth;
}

std::string Charts(const MetricsHistory& history) {
  const Points loss = PointsOf(history.steps, [](const StepMetrics& s) { return s.loss; });
  Points held;
  for (const EvalMetrics& eval : history.evals) held.push_back({static_cast<double>(eval.step), eval.loss});
  std::string html = ChartHtml({"Loss",
                                "nats per target token, by step",
                                {{"training, each step", "raw", loss},
                                 {"training, smoothed", "main", Smoothed(loss)},
                                 {"validation", "held", held, /*dots=*/true}},
                                /*wide=*/true});
  const Points rate = PointsOf(history.steps, [](const StepMetrics& s) { return s.learning_rate; });
  const Points norm = PointsOf(history.steps, [](const StepMetrics& s) { return s.grad_norm; });
  const Points speed = PointsOf(history.steps, [](const StepMetrics& s) { return s.TokensPerSecond(); });
  html += ChartHtml({"Learning rate", "", {{"", "main", rate}}});
  html += ChartHtml({"Gradient norm", "before clipping", {{"", "raw", norm}, {"", "main", Smoothed(norm)}}});
  html += ChartHtml({"Speed", "tokens/s", {{"", "raw", speed}, {"", "main", Smoothed(speed)}}});
  return html;
}

std::string Tile(const std::string& name, const std::string& value) {
  return absl::StrCat("<div class=\"tile\"><span>", HtmlEscaped(name), "</span><b>", HtmlEscaped(value),
                      "</b></div>\n");
}

std::string GroupedDigits(int64_t number) {
  std::string digits = absl::StrCat(number);
  for (int i = static_cast<int>(digits.size()) - 3; i > (number < 0 ? 1 : 0); i -= 3)
    digits.insert(static_cast<size_t>(i), 1, ',');
  return digits;
}

std::string Tiles(const RunReport& report, const MetricsHistory& history) {
  std::string html;
  if (!history.steps.empty()) {
    int64_t tokens = 0, device_bytes = 0, process_bytes = 0;
    double seconds = 0;
    for (const StepMetrics& step : history.steps) {
      tokens += step.tokens;
      seconds += std::isfinite(step.seconds) ? step.seconds : 0;
      device_bytes = std::max(device_bytes, step.device_bytes);
      process_bytes = std::max(process_bytes, step.process_bytes);
    }
    html += Tile("steps", GroupedDigits(history.steps.back().step));
    html += Tile("last training loss", absl::StrFormat("%.4f", history.steps.back().loss));
    html += Tile("tokens logged", GroupedDigits(tokens));
    if (seconds > 0) html += Tile("tokens/s", GroupedDigits(std::llround(static_cast<double>(tokens) / seconds)));
    html += Tile("time logged", DurationText(seconds));
    if (device_bytes > 0) html += Tile("arena, peak", MemoryText(device_bytes));
    if (process_bytes > 0) html += Tile("process, peak", MemoryText(process_bytes));
  }
  const EvalMetrics* best = nullptr;
  for (const EvalMetrics& eval : history.evals) {
    if (best == nullptr || eval.loss < best->loss) best = &eval;
  }
  if (best != nullptr) {
    html += Tile("first validation loss", absl::StrFormat("%.4f", history.evals.front().loss));
    html += Tile(absl::StrCat("best one, step ", best->step), absl::StrFormat("%.4f", best->loss));
  }
  for (const auto& [name, value] : report.facts) html += Tile(name, value);
  return html;
}

std::string Table(const ReportTable& table) {
  std::string html = absl::StrCat("<h2>", HtmlEscaped(table.title), "</h2>\n<table><thead><tr>");
  for (const std::string& column : table.columns) absl::StrAppend(&html, "<th>", HtmlEscaped(column), "</th>");
  absl::StrAppend(&html, "</tr></thead><tbody>\n");
  for (const std::vector<std::string>& row : table.rows) {
    absl::StrAppend(&html, "<tr>");
    for (const std::string& cell : row) absl::StrAppend(&html, "<td>", HtmlEscaped(cell), "</td>");
    absl::StrAppend(&html, "</tr>\n");
  }
  return html + "</tbody></table>\n";
}

// The last step's answers are shown, earlier ones are folded away.
std::string Samples(const std::vector<SampleAnswer>& samples) {
  if (samples.empty()) return "";
  std::string latest, earlier;
  for (const SampleAnswer& sample : samples) {
    const bool is_latest = sample.step == samples.back().step;
    absl::StrAppend(is_latest ? &latest : &earlier, "<div class=\"sample\"><span>step ", sample.step, " · ",
                    HtmlEscaped(sample.prompt), "</span><p>", HtmlEscaped(sample.answer), "</p></div>\n");
  }
  if (!earlier.empty()) latest += "<details><summary>Earlier answers</summary>\n" + earlier + "</details>\n";
  return "<h2>Sample answers</h2>\n" + latest;
}

}  // namespace

std::string ReportHtml(const RunReport& report, const MetricsHistory& history) {
  std::string html = absl::StrCat(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>",
      HtmlEscaped(report.title), "</title><style>", kStyle, "</style></head>\n<body><main>\n<h1>",
      HtmlEscaped(report.title), "</h1>\n<p class=\"sub\">", HtmlEscaped(report.subtitle), "</p>\n");
  absl::StrAppend(&html, "<div class=\"tiles\">\n", Tiles(report, history), "</div>\n<div class=\"charts\">\n",
                  Charts(history), "</div>\n");
  for (const Chart& chart : report.charts)
    absl::StrAppend(&html, "<div class=\"charts\">\n", ChartHtml(chart), "</div>\n");
  for (const ReportTable& table : report.tables) html += Table(table);
  html += Samples(history.samples);
  if (!report.settings.empty()) {
    absl::StrAppend(&html, "<h2>Settings</h2>\n<pre>", HtmlEscaped(report.settings), "</pre>\n");
  }
  return html + "</main></body></html>\n";
}

}  // namespace thimble
