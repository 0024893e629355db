// The readers under libFuzzer; $THIMBLE_FUZZ_READER names the one to run. See ./dev fuzz.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "tests/fuzz/readers.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const thimble::FuzzReader* const chosen = [] {
    const char* name = std::getenv("THIMBLE_FUZZ_READER");
    for (const thimble::FuzzReader& reader : thimble::FuzzReaders()) {
      if (name != nullptr && reader.name == name) return &reader;
    }
    std::fprintf(stderr, "THIMBLE_FUZZ_READER names no reader\n");
    std::exit(2);
  }();
  chosen->read({reinterpret_cast<const char*>(data), size});
  return 0;
}
