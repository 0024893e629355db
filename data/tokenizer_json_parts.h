// Parts of a tokenizer.json with the errors that name the place in the file.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "data/tokenizer_parts.h"

namespace thimble {

// A value and its place, such as "model.merges[3]".
class JsonNode {
 public:
  JsonNode(const nlohmann::json* value, std::string place) : value_(value), place_(std::move(place)) {}

  const nlohmann::json& value() const { return *value_; }
  const std::string& place() const { return place_; }
  bool Has(const char* key) const;  // present and not null
  JsonNode At(const char* key) const;
  JsonNode At(size_t index) const;
  // "<place>: expected <expected>, found <what is there>".
  absl::Status Expected(const std::string& expected) const;
  absl::Status Error(const std::string& message) const;  // "<place>: <message>"

  absl::StatusOr<bool> Bool(const char* key) const;
  absl::StatusOr<bool> Bool(const char* key, bool otherwise) const;
  absl::StatusOr<std::string> String(const char* key) const;
  absl::StatusOr<std::string> String(const char* key, const char* otherwise) const;
  absl::StatusOr<int64_t> Integer(const char* key, int64_t low, int64_t high) const;
  absl::StatusOr<JsonNode> Array(const char* key) const;
  absl::StatusOr<JsonNode> Object(const char* key) const;

 private:
  const nlohmann::json* value_;
  std::string place_;
};

inline constexpr int64_t kMostTokens = int64_t{1} << 22;  // ids are below; keeps a broken id from taking all memory

absl::StatusOr<std::vector<NormalizerStep>> ReadNormalizer(const JsonNode& node);
absl::StatusOr<std::vector<PreTokenizerStep>> ReadPreTokenizer(const JsonNode& node);
absl::StatusOr<std::vector<DecoderStep>> ReadDecoder(const JsonNode& node);
absl::StatusOr<std::vector<int32_t>> ReadPostProcessor(const JsonNode& node);
// Fills vocabulary, model and its merges; the model is not prepared yet.
absl::StatusOr<BpeOptions> ReadBpeModel(const JsonNode& node, Vocabulary& vocabulary, BpeModel& model);

}  // namespace thimble
