// Reads the golden files of tests/golden/ops: lines of a name and numbers.
#pragma once

#include <fstream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace thimble {

inline std::vector<std::pair<std::string, std::vector<float>>> ReadGoldenLines(const std::string& name) {
  const std::string path = std::string(THIMBLE_SOURCE_DIR) + "/tests/golden/ops/" + name;
  std::ifstream file(path);
  EXPECT_TRUE(file.good()) << path;
  std::vector<std::pair<std::string, std::vector<float>>> lines;
  for (std::string text; std::getline(file, text);) {
    std::istringstream words(text);
    auto& [key, values] = lines.emplace_back();
    words >> key;
    for (std::string word; words >> word;) values.push_back(std::stof(word));
  }
  return lines;
}

}  // namespace thimble
