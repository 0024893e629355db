// How far a long piece of work is, on standard error.
#pragma once

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <string>

namespace thimble {

class Stopwatch {
 public:
  double Seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }
  void Restart() { start_ = std::chrono::steady_clock::now(); }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// One line on a terminal, one line every ten seconds elsewhere.
class WorkProgress {
 public:
  WorkProgress() : terminal_(::isatty(::fileno(stderr)) == 1) {}
  ~WorkProgress() {
    if (terminal_ && shown_) std::fprintf(stderr, "\r\033[K");
  }
  WorkProgress(const WorkProgress&) = delete;
  WorkProgress& operator=(const WorkProgress&) = delete;

  void Show(const std::string& text) {
    if (last_.Seconds() < (terminal_ ? 0.2 : 10.0)) return;
    last_.Restart();
    shown_ = true;
    std::fprintf(stderr, terminal_ ? "\r\033[K%s" : "%s\n", text.c_str());
    std::fflush(stderr);
  }

 private:
  bool terminal_;
  bool shown_ = false;
  Stopwatch last_;
};

}  // namespace thimble
