#include "ops/stream_copy.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "ops/parallel.h"

namespace thimble {
namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kPage = 4096;
constexpr int64_t kPages = 4;
// Below this a cache holds both sides.
constexpr int64_t kSmall = int64_t{256} << 10;

#if defined(__SSE2__)
// kPages pages, a line of each in turn. `to` is on a line.
void CopyPages(char* to, const char* from) {
  for (int64_t at = 0; at < kPage; at += kLine) {
    for (int64_t page = 0; page < kPages; ++page) {
      const char* source = from + page * kPage + at;
      __m128i* line = reinterpret_cast<__m128i*>(to + page * kPage + at);
      for (int i = 0; i < 4; ++i) {
        _mm_stream_si128(line + i, _mm_loadu_si128(reinterpret_cast<const __m128i*>(source) + i));
      }
    }
  }
}

// Whole groups of pages of a block that begins on a line; what was copied.
int64_t CopyGroups(char* to, const char* from, int64_t bytes) {
  constexpr int64_t kGroup = kPages * kPage;
  const int64_t whole = bytes / kGroup * kGroup;
  for (int64_t at = 0; at < whole; at += kGroup) CopyPages(to + at, from + at);
  // Other threads see streamed bytes only behind a fence.
  _mm_sfence();
  return whole;
}
#else
int64_t CopyGroups(char*, const char*, int64_t) { return 0; }
#endif

}  // namespace

void StreamCopy(void* to, const void* from, int64_t bytes) {
  if (bytes == 0) return;  // memcpy wants addresses even then
  char* target = static_cast<char*>(to);
  const char* source = static_cast<const char*>(from);
  const int64_t head = std::min(bytes, (kLine - reinterpret_cast<intptr_t>(target) % kLine) % kLine);
  int64_t done = 0;
  if (bytes >= kSmall) {
    std::memcpy(target, source, static_cast<size_t>(head));
    done = head + CopyGroups(target + head, source + head, bytes - head);
  }
  std::memcpy(target + done, source + done, static_cast<size_t>(bytes - done));
}

void ParallelStreamCopy(void* to, const void* from, int64_t bytes) {
  constexpr int64_t kPiece = int64_t{1} << 20;
  ParallelFor((bytes + kPiece - 1) / kPiece, [&](int64_t i, int) {
    const int64_t at = i * kPiece;
    StreamCopy(static_cast<char*>(to) + at, static_cast<const char*>(from) + at, std::min(kPiece, bytes - at));
  });
}

}  // namespace thimble
