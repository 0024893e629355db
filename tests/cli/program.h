// Runs the program thimble as a child process, and can stop it at any moment.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace thimble {

struct ProgramResult {
  int exit_code = -1;  // -1: ended by a signal
  int signal = 0;
  std::string errors;  // standard error
  double seconds = 0;

  // Lines of the program's own error messages.
  int Messages() const {
    int count = 0;
    std::istringstream lines(errors);
    for (std::string line; std::getline(lines, line);) count += line.rfind("thimble: ", 0) == 0 ? 1 : 0;
    return count;
  }
};

inline std::string FileContent(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

// One child; `scratch` is a file that receives its standard error, `output` one that is there and gets the other.
class Program {
 public:
  Program(std::vector<std::string> arguments, std::string scratch, rlim_t file_limit = RLIM_INFINITY,
          const char* output = "/dev/null", rlim_t space_limit = RLIM_INFINITY)
      : scratch_(std::move(scratch)), start_(std::chrono::steady_clock::now()) {
    arguments.insert(arguments.begin(), THIMBLE_PROGRAM);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    child_ = ::fork();
    if (child_ != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const int out = ::open(scratch_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    const int null = ::open("/dev/null", O_RDWR);
    ::dup2(null, 0);
    ::dup2(::open(output, O_WRONLY), 1);
    ::dup2(out, 2);
    if (file_limit != RLIM_INFINITY) {
      const rlimit limit = {file_limit, file_limit};
      ::setrlimit(RLIMIT_FSIZE, &limit);
    }
    if (space_limit != RLIM_INFINITY) {
      const rlimit limit = {space_limit, space_limit};
      ::setrlimit(RLIMIT_AS, &limit);
    }
    ::execv(THIMBLE_PROGRAM, argv.data());
    ::_exit(127);
  }
  ~Program() {
    if (child_ > 0) {
      Signal(SIGKILL);
      Wait();
    }
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  pid_t pid() const { return child_; }
  void Signal(int signal) const { ::kill(child_, signal); }
  bool Ended() const {
    siginfo_t info = {};
    return ::waitid(P_PID, static_cast<id_t>(child_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0;
  }
  ProgramResult Wait() {
    ProgramResult result;
    int status = 0;
    ::waitpid(child_, &status, 0);
    child_ = -1;
    if (WIFEXITED(status)) result.exit_code = WEXITSTATUS(status);
    if (WIFSIGNALED(status)) result.signal = WTERMSIG(status);
    result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    result.errors = FileContent(scratch_);
    return result;
  }

 private:
  std::string scratch_;
  std::chrono::steady_clock::time_point start_;
  pid_t child_ = -1;
};

}  // namespace thimble
