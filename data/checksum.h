// CRC-32C for files that must show a flipped byte, SHA-256 for keys that name content.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace thimble {

// CRC-32C (Castagnoli, reflected, as in iSCSI) of `size` bytes; pass the previous result to carry on.
// Detects every change confined to 32 neighbouring bits. Source: RFC 3720, appendix B.4.
uint32_t Crc32c(const void* data, size_t size, uint32_t crc = 0);

// SHA-256 fed in pieces. Source: FIPS 180-4.
class Sha256 {
 public:
  Sha256();
  void Update(std::string_view bytes);
  // Adds the length before the text, so that neighbouring fields cannot run into each other.
  void UpdateField(std::string_view text);
  // 64 lower-case hexadecimal digits; the object is spent afterwards.
  std::string HexDigest();

 private:
  void Block(const uint8_t* block);

  std::array<uint32_t, 8> state_;
  std::array<uint8_t, 64> buffer_{};
  size_t buffered_ = 0;
  uint64_t total_bytes_ = 0;
};

}  // namespace thimble
