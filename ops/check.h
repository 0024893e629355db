// CHECK for programmer errors and return-if-error for everything a user can cause.
// Debian's Abseil (20220623) has neither. User input must never reach a CHECK.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace thimble {

// Collects the message of a failed CHECK and aborts when destroyed.
class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const char* condition) {
    stream_ << file << ":" << line << ": CHECK failed: " << condition << " ";
  }
  [[noreturn]] ~CheckFailure() {
    std::fprintf(stderr, "%s\n", stream_.str().c_str());
    std::abort();
  }
  std::ostream& stream() { return stream_; }

 private:
  std::ostringstream stream_;
};

}  // namespace thimble

#define CHECK(condition) \
  if (condition) {       \
  } else                 \
    ::thimble::CheckFailure(__FILE__, __LINE__, #condition).stream()
#define CHECK_OP_(a, op, b) CHECK((a)op(b)) << "(" << (a) << " vs " << (b) << ") "
#define CHECK_EQ(a, b) CHECK_OP_(a, ==, b)
#define CHECK_NE(a, b) CHECK_OP_(a, !=, b)
#define CHECK_LE(a, b) CHECK_OP_(a, <=, b)
#define CHECK_LT(a, b) CHECK_OP_(a, <, b)
#define CHECK_GE(a, b) CHECK_OP_(a, >=, b)
#define CHECK_GT(a, b) CHECK_OP_(a, >, b)

#ifdef NDEBUG
#define DCHECK(condition) \
  if (true) {             \
  } else                  \
    CHECK(condition)
#else
#define DCHECK(condition) CHECK(condition)
#endif

#define RETURN_IF_ERROR(expression)                                  \
  do {                                                               \
    ::absl::Status return_if_error_status = (expression);            \
    if (!return_if_error_status.ok()) return return_if_error_status; \
  } while (false)

#define THIMBLE_CONCAT_INNER(a, b) a##b
#define THIMBLE_CONCAT(a, b) THIMBLE_CONCAT_INNER(a, b)
// Two of them in one scope need two names.
#define ASSIGN_OR_RETURN(left, expression) ASSIGN_OR_RETURN_IMPL(THIMBLE_CONCAT(status_or_, __LINE__), left, expression)
#define ASSIGN_OR_RETURN_IMPL(name, left, expression) \
  auto name = (expression);                           \
  if (!name.ok()) return name.status();               \
  left = std::move(name).value()
