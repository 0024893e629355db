// Signal handlers of a run.
#include "recipes/stop_signals.h"

#include <unistd.h>

#include <csignal>

#include "recipes/command_line.h"

namespace thimble {
namespace {

std::atomic<bool> g_stop{false};
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler may write it");

void RequestStop(int) { g_stop.store(true); }

void ExitAtOnce(int) {
  constexpr char kMessage[] = "thimble: interrupted\n";
  const ssize_t written = ::write(STDERR_FILENO, kMessage, sizeof(kMessage) - 1);
  static_cast<void>(written);
  ::_exit(kExitInterrupted);
}

void Handle(void (*handler)(int), int flags) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

}  // namespace

void StopAtOnceOnSignals() { Handle(ExitAtOnce, 0); }

const std::atomic<bool>& StopAfterStepOnSignals() {
  Handle(RequestStop, static_cast<int>(SA_RESETHAND));
  return g_stop;
}

}  // namespace thimble
