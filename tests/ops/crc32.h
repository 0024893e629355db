// The CRC-32 of a vector's bytes, as zlib's: golden files hold it where the values themselves would be large.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace thimble {

template <typename T>
uint32_t Crc32(const std::vector<T>& values) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> entries;
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t c = i;
      for (int bit = 0; bit < 8; ++bit) c = c & 1 ? 0xedb88320 ^ (c >> 1) : c >> 1;
      entries[i] = c;
    }
    return entries;
  }();
  uint32_t crc = 0xffffffff;
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(values.data());
  for (size_t i = 0; i < values.size() * sizeof(T); ++i) crc = table[(crc ^ bytes[i]) & 255] ^ (crc >> 8);
  return ~crc;
}

}  // namespace thimble
