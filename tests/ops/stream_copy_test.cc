#include "ops/stream_copy.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace thimble {
namespace {

using Copy = void (*)(void*, const void*, int64_t);

// Every byte and no other, at any alignment of either side, around the sizes where the way of copying changes.
void ExpectExact(Copy copy) {
  for (const int64_t bytes : {int64_t{0}, int64_t{1}, int64_t{4095}, int64_t{262143}, int64_t{262144}, int64_t{278529},
                              int64_t{1048577}, int64_t{5000001}}) {
    for (const int64_t to : {0, 1, 63}) {
      for (const int64_t from : {0, 5, 32}) {
        std::vector<uint8_t> source(bytes + from), target(bytes + to + 100, 0xEE);
        for (int64_t i = 0; i < bytes + from; ++i) source[i] = static_cast<uint8_t>(i * 7 + i / 4096 + i / 65536);
        copy(target.data() + to, source.data() + from, bytes);
        const std::vector<uint8_t> copied(target.begin() + to, target.begin() + to + bytes);
        const std::vector<uint8_t> expected(source.begin() + from, source.end());
        ASSERT_TRUE(copied == expected) << bytes << " bytes, to " << to << ", from " << from;
        for (int64_t i = 0; i < to; ++i) ASSERT_EQ(target[i], 0xEE);
        for (int64_t i = to + bytes; i < to + bytes + 100; ++i) ASSERT_EQ(target[i], 0xEE);
      }
    }
  }
}

TEST(StreamCopyTest, CopiesEveryByteAndNoOther) { ExpectExact(StreamCopy); }

TEST(StreamCopyTest, ByAllThreadsToo) { ExpectExact(ParallelStreamCopy); }

}  // namespace
}  // namespace thimble
