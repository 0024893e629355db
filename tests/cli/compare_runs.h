// Whether two runs came to the same bits.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "data/hdf5_file.h"
#include "nlohmann/json.hpp"
#include "tests/cli/program.h"
#include "trainer/checkpoint.h"

namespace thimble {

// Every entry of a checkpoint as bytes, but for the time that was spent. What the run belongs to is left out where
// recipes differ on purpose.
inline std::map<std::string, std::string> CheckpointEntries(const std::string& path, bool with_identity) {
  std::map<std::string, std::string> entries;
  const auto file = Hdf5Reader::Open(path);
  EXPECT_TRUE(file.ok()) << file.status();
  if (!file.ok()) return entries;
  for (const auto& [name, entry] : file->entries()) {
    if (name == "state/seconds" || (!with_identity && name.rfind("identity/", 0) == 0)) continue;
    std::string bytes(static_cast<size_t>(entry.bytes), '\0');
    const int64_t count = entry.bytes / Hdf5TypeBytes(entry.type);
    EXPECT_TRUE(file->ReadRange(name, entry.type, 0, count, bytes.data()).ok()) << name;
    entries[name] = std::move(bytes);
  }
  return entries;
}

// The last checkpoint's tensors, moments and state, and the exported weights.
inline void ExpectSameEnd(const std::string& expected, const std::string& found, bool with_identity = true) {
  const std::vector<int64_t> steps = ListCheckpoints(expected);
  const std::vector<int64_t> found_steps = ListCheckpoints(found);
  ASSERT_FALSE(steps.empty());
  ASSERT_FALSE(found_steps.empty());
  ASSERT_EQ(steps.back(), found_steps.back());
  const auto left = CheckpointEntries(CheckpointPath(expected, steps.back()), with_identity);
  const auto right = CheckpointEntries(CheckpointPath(found, steps.back()), with_identity);
  ASSERT_GT(left.size(), 12u);
  ASSERT_EQ(left.size(), right.size());
  for (const auto& [name, bytes] : left) {
    ASSERT_EQ(right.count(name), 1u) << name;
    EXPECT_TRUE(bytes == right.at(name)) << name << " differs";
  }
  const std::string weights = FileContent(expected + "/model/model.safetensors");
  EXPECT_GT(weights.size(), 1000u);
  EXPECT_TRUE(weights == FileContent(found + "/model/model.safetensors")) << "exported weights differ";
}

// What metrics.jsonl says of steps and evaluations, without times; duplicates are failures.
inline std::map<std::string, std::string> Metrics(const std::string& run) {
  std::map<std::string, std::string> metrics;
  std::istringstream lines(FileContent(run + "/metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    nlohmann::json json = nlohmann::json::parse(line, nullptr, false);
    EXPECT_TRUE(json.is_object()) << line;
    if (!json.is_object()) continue;
    const std::string kind = json.contains("eval_loss") ? "eval " : "step ";
    for (const char* key : {"seconds", "tokens_per_second", "eval_seconds", "process_bytes", "device_bytes"}) {
      json.erase(key);
    }
    const auto [place, inserted] = metrics.emplace(kind + std::to_string(json["step"].get<int>()), json.dump());
    EXPECT_TRUE(inserted) << run << " has twice: " << line;
  }
  return metrics;
}

}  // namespace thimble
