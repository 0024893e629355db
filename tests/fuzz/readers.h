// The readers of files that come from elsewhere, each as a function of any bytes: it may read or refuse them, and
// nothing else may happen. Run by libFuzzer (./dev fuzz) and over tests/fuzz/corpus by the tests.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace thimble {

struct FuzzReader {
  std::string_view name;                 // of the folder of its corpus
  bool (*read)(std::string_view bytes);  // true: read whole, false: refused
};
const std::vector<FuzzReader>& FuzzReaders();

}  // namespace thimble
