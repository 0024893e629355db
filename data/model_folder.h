// A model folder as Hugging Face writes it: config.json, tensors in one safetensors file or in shards with an index,
// and the tokenizer's and generation's files beside them. A GGUF file is read as the folder that says the same.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "data/safetensors_writer.h"
#include "data/tensor_file.h"
#include "nlohmann/json.hpp"

namespace thimble {

// A tensor and the file that holds it; both live as long as the folder they came from.
struct TensorRef {
  const TensorFile* file = nullptr;
  const TensorInfo* info = nullptr;
};

class ModelFolder {
 public:
  // Opens and checks all files, or a GGUF file; reads no tensor. NotFound for a folder, config.json, tensor file or
  // shard that is not there; InvalidArgument for broken JSON, a tensor in two shards, or an index that names a tensor
  // its shard lacks; DataLoss for a file cut short.
  static absl::StatusOr<std::unique_ptr<ModelFolder>> Open(const std::string& path);

  const std::string& path() const { return path_; }
  const nlohmann::json& config() const { return config_; }
  // What the configuration was read from, for errors: a config.json or a GGUF file's metadata.
  const std::string& config_place() const { return config_place_; }
  // Of all files, by name.
  const std::vector<TensorRef>& tensors() const { return tensors_; }
  const TensorRef* Find(std::string_view name) const;
  // A tensor that must be there: NotFound without it, InvalidArgument with both shapes where its shape differs.
  absl::StatusOr<TensorRef> Require(std::string_view name, const std::vector<int64_t>& shape) const;

 private:
  explicit ModelFolder(const std::string& path) : path_(path) {}
  absl::Status OpenTensors();
  absl::Status OpenGguf();
  absl::Status OpenShards(const std::string& index_path);
  absl::Status AddFile(std::unique_ptr<TensorFile> file);

  std::string path_;
  std::string config_place_;
  nlohmann::json config_;
  std::vector<std::unique_ptr<TensorFile>> files_;
  std::vector<TensorRef> tensors_;
  absl::flat_hash_map<std::string, size_t> index_;
};

// CRC-32C over names, shapes and bytes of all tensors and the configuration, as hexadecimal text.
absl::StatusOr<std::string> Fingerprint(const ModelFolder& folder);

// Names of the files that lie in `folder`, to carry along when a model made from the one in `folder` is written:
// tokenizer, chat template, vocabulary, generation settings.
std::vector<std::string> CarriedFiles(const std::string& folder);

inline constexpr int64_t kDefaultMaxShardBytes = 50'000'000'000;

// Writes such a folder under another name and renames it at the end: it is there whole or not at all.
class ModelFolderWriter {
 public:
  // Tensors go to shards in the order given; a shard takes tensors until the next would pass max_shard_bytes.
  // One shard is model.safetensors; several have an index. InvalidArgument when `path` exists and is not an empty
  // folder.
  static absl::StatusOr<std::unique_ptr<ModelFolderWriter>> Create(const std::string& path,
                                                                   const nlohmann::json& config,
                                                                   const std::vector<TensorSpec>& tensors,
                                                                   int64_t max_shard_bytes = kDefaultMaxShardBytes);
  // Removes everything unless Finish succeeded.
  ~ModelFolderWriter();
  ModelFolderWriter(const ModelFolderWriter&) = delete;
  ModelFolderWriter& operator=(const ModelFolderWriter&) = delete;

  // As in SafetensorsWriter; tensors may come in any order.
  absl::Status Append(std::string_view name, const void* data, int64_t bytes);
  absl::Status AppendFloats(std::string_view name, ConstVector values);
  // A file beside the tensors.
  absl::Status WriteFile(const std::string& name, std::string_view content);
  // Copies CarriedFiles(folder); of a GGUF file, writes the tokenizer that it holds.
  absl::Status CarryFiles(const std::string& folder);
  absl::Status Finish();
  // Of all tensors.
  int64_t data_bytes() const { return data_bytes_; }

 private:
  ModelFolderWriter(const std::string& path, const std::string& beside) : path_(path), beside_(beside) {}

  std::string path_;
  std::string beside_;
  bool finished_ = false;
  int64_t data_bytes_ = 0;
  std::vector<std::unique_ptr<SafetensorsWriter>> shards_;
  absl::flat_hash_map<std::string, SafetensorsWriter*> shard_of_;
};

}  // namespace thimble
