// The program thimble.
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>
#include <system_error>
#include <vector>

#include "recipes/commands/commands.h"

namespace {

// libgomp lets idle threads spin for milliseconds by default, which on a shared machine takes the processor from the
// thread they wait for: a step was measured ten times slower beside a build. It reads its settings before main, so the
// program starts itself again with a spin of some 20 microseconds, unless the user has chosen.
void SpinBriefly(char** argv) {
  if (std::getenv("OMP_WAIT_POLICY") != nullptr || std::getenv("GOMP_SPINCOUNT") != nullptr) return;
  if (setenv("GOMP_SPINCOUNT", "2000", 0) == 0) execv("/proc/self/exe", argv);
}

}  // namespace

int main(int argc, char** argv) {
  SpinBriefly(argv);
  // A file size limit shall be an error of the write that meets it, not the end of the process.
  std::signal(SIGXFSZ, SIG_IGN);
  try {
    return thimble::RunCommandLine(thimble::Commands(), std::vector<std::string>(argv + 1, argv + argc));
  } catch (const std::bad_alloc&) {
    std::fputs("thimble: the system refuses more memory; see ulimit -v and the limits of the control group\n", stderr);
  } catch (const std::system_error& error) {
    std::fprintf(stderr, "thimble: the system refuses a thread (%s); see ulimit -u and ulimit -v\n", error.what());
  }
  return 1;
}
