#include "data/model_folder.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "data/checksum.h"
#include "data/file.h"
#include "data/gguf_header.h"
#include "data/gguf_model.h"
#include "data/gguf_tokenizer.h"
#include "data/json_file.h"
#include "ops/check.h"

namespace thimble {
namespace {

namespace fs = std::filesystem;

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";

bool IsCarried(const std::string& name) {
  static const std::set<std::string> kNames = {"special_tokens_map.json",
                                               "added_tokens.json",
                                               "generation_config.json",
                                               "vocab.json",
                                               "vocab.txt",
                                               "merges.txt"};
  return kNames.count(name) > 0 || absl::StartsWith(name, "tokenizer") || absl::StartsWith(name, "chat_template");
}

// What to say of a folder without safetensors.
absl::Status NoTensors(const std::string& path) {
  std::error_code error;
  std::string hint;
  for (const fs::directory_entry& entry : fs::directory_iterator(path, error)) {
    const std::string extension = entry.path().extension().string();
    if (extension == ".gguf") {
      hint = absl::StrCat("; name the file ", entry.path().filename().string(), " itself to read it");
    } else if (extension == ".bin" || extension == ".pt" || extension == ".pth") {
      hint = absl::StrCat("; ", entry.path().filename().string(), " is not read here: convert it to safetensors");
    }
  }
  return absl::NotFoundError(absl::StrCat(path, ": has neither ", kSingleFile, " nor ", kIndexFile, hint));
}

// Tensors of each shard, in order.
std::vector<std::vector<TensorSpec>> SplitShards(const std::vector<TensorSpec>& tensors, int64_t max_shard_bytes) {
  std::vector<std::vector<TensorSpec>> shards(1);
  int64_t bytes = 0;
  for (const TensorSpec& tensor : tensors) {
    // In floating point, as SafetensorsWriter has yet to check for overflow.
    double size = static_cast<double>(BitsOf(tensor.dtype)) / 8;
    for (const int64_t extent : tensor.shape) size *= static_cast<double>(extent);
    if (!shards.back().empty() && static_cast<double>(bytes) + size > static_cast<double>(max_shard_bytes)) {
      shards.emplace_back();
      bytes = 0;
    }
    bytes += static_cast<int64_t>(std::min(size, 1e18));
    shards.back().push_back(tensor);
  }
  return shards;
}

std::string ErrorText(const std::error_code& error) { return error.message(); }

}  // namespace

absl::StatusOr<std::unique_ptr<ModelFolder>> ModelFolder::Open(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) return absl::NotFoundError(absl::StrCat(path, ": no such model folder"));
  std::unique_ptr<ModelFolder> folder(new ModelFolder(path));
  if (IsGgufFile(path)) {
    RETURN_IF_ERROR(folder->OpenGguf());
  } else if (!fs::is_directory(status)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": is a file, expected a GGUF file or a folder with config.json and safetensors"));
  } else {
    folder->config_place_ = path + "/config.json";
    ASSIGN_OR_RETURN(folder->config_, ReadJsonObject(folder->config_place_));
    RETURN_IF_ERROR(folder->OpenTensors());
  }
  std::sort(folder->tensors_.begin(), folder->tensors_.end(),
            [](const TensorRef& a, const TensorRef& b) { return a.info->name < b.info->name; });
  for (size_t i = 0; i < folder->tensors_.size(); ++i) folder->index_[folder->tensors_[i].info->name] = i;
  return folder;
}

absl::Status ModelFolder::OpenGguf() {
  config_place_ = path_ + ": metadata";
  ASSIGN_OR_RETURN(const GgufHeader header, ReadGgufHeader(path_));
  ASSIGN_OR_RETURN(config_, GgufConfig(header));
  ASSIGN_OR_RETURN(std::vector<TensorInfo> tensors, GgufModelTensors(header));
  if (tensors.empty()) return absl::NotFoundError(path_ + ": has metadata but no tensors");
  ASSIGN_OR_RETURN(std::unique_ptr<TensorFile> file,
                   TensorFile::OpenTable(path_, header.data_begin(), std::move(tensors)));
  return AddFile(std::move(file));
}

absl::Status ModelFolder::OpenTensors() {
  // The single file first, as transformers does where both are there.
  std::error_code error;
  const std::string single = absl::StrCat(path_, "/", kSingleFile), index = absl::StrCat(path_, "/", kIndexFile);
  if (fs::exists(single, error)) {
    ASSIGN_OR_RETURN(std::unique_ptr<TensorFile> file, TensorFile::Open(single));
    return AddFile(std::move(file));
  }
  if (fs::exists(index, error)) return OpenShards(index);
  return NoTensors(path_);
}

absl::Status ModelFolder::OpenShards(const std::string& index_path) {
  ASSIGN_OR_RETURN(const nlohmann::json index, ReadJsonObject(index_path));
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(index_path, ": has no object weight_map"));
  }
  std::set<std::string> names;
  for (const auto& [tensor, file] : map->items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    if (name.empty() || name.find('/') != std::string::npos || name.find('\0') != std::string::npos || name == "." ||
        name == "..") {
      return absl::InvalidArgumentError(absl::StrCat(index_path, ": weight_map \"", tensor, "\" is ", file.dump(),
                                                     ", expected the name of a file in this folder"));
    }
    names.insert(name);
  }
  for (const std::string& name : names) {
    auto file = TensorFile::Open(absl::StrCat(path_, "/", name));
    if (absl::IsNotFound(file.status())) {
      return absl::NotFoundError(
          absl::StrCat(path_, ": shard ", name, ", which ", kIndexFile, " names, is missing; fetch it again"));
    }
    if (!file.ok()) return file.status();
    RETURN_IF_ERROR(AddFile(std::move(*file)));
  }
  for (const auto& [tensor, file] : map->items()) {
    const auto found = index_.find(tensor);
    if (found == index_.end() ||
        fs::path(tensors_[found->second].file->path()).filename() != file.get_ref<const std::string&>()) {
      return absl::InvalidArgumentError(
          absl::StrCat(index_path, ": tensor \"", tensor, "\" is not in ", file.get_ref<const std::string&>()));
    }
  }
  return absl::OkStatus();
}

absl::Status ModelFolder::AddFile(std::unique_ptr<TensorFile> file) {
  for (const TensorInfo& info : file->tensors()) {
    const auto [place, inserted] = index_.emplace(info.name, tensors_.size());
    if (!inserted) {
      return absl::InvalidArgumentError(absl::StrCat("tensor \"", info.name, "\" is in both ",
                                                     tensors_[place->second].file->path(), " and ", file->path()));
    }
    tensors_.push_back({file.get(), &info});
  }
  files_.push_back(std::move(file));
  return absl::OkStatus();
}

const TensorRef* ModelFolder::Find(std::string_view name) const {
  const auto found = index_.find(std::string(name));
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

absl::StatusOr<TensorRef> ModelFolder::Require(std::string_view name, const std::vector<int64_t>& shape) const {
  const TensorRef* tensor = Find(name);
  if (tensor == nullptr) {
    return absl::NotFoundError(absl::StrCat(path_, ": has no tensor \"", std::string(name), "\", expected with shape ",
                                            ShapeText(shape), " from ",
                                            std::filesystem::path(config_place_).filename().string()));
  }
  if (tensor->info->shape != shape) {
    return absl::InvalidArgumentError(absl::StrCat(
        tensor->file->path(), ": tensor \"", std::string(name), "\" has shape ", ShapeText(tensor->info->shape),
        ", expected ", ShapeText(shape), " from ", std::filesystem::path(config_place_).filename().string()));
  }
  return *tensor;
}

absl::StatusOr<std::string> Fingerprint(const ModelFolder& folder) {
  const std::string config = folder.config().dump();
  uint32_t crc = Crc32c(config.data(), config.size());
  constexpr int64_t kChunkBytes = int64_t{1} << 20;
  std::vector<char> chunk(kChunkBytes);
  for (const TensorRef& tensor : folder.tensors()) {
    const std::string header = absl::StrCat(tensor.info->name, ShapeText(tensor.info->shape));
    crc = Crc32c(header.data(), header.size(), crc);
    for (int64_t at = 0; at < tensor.info->bytes; at += kChunkBytes) {
      const int64_t count = std::min(kChunkBytes, tensor.info->bytes - at);
      RETURN_IF_ERROR(tensor.file->ReadBytes(*tensor.info, at, count, chunk.data()));
      crc = Crc32c(chunk.data(), static_cast<size_t>(count), crc);
    }
  }
  return absl::StrFormat("%08x", crc);
}

std::vector<std::string> CarriedFiles(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (entry.is_regular_file(error) && IsCarried(name)) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

absl::StatusOr<std::unique_ptr<ModelFolderWriter>> ModelFolderWriter::Create(const std::string& path,
                                                                             const nlohmann::json& config,
                                                                             const std::vector<TensorSpec>& tensors,
                                                                             int64_t max_shard_bytes) {
  std::string target = path;
  while (target.size() > 1 && target.back() == '/') target.pop_back();
  std::error_code error;
  if (fs::exists(target, error) && !(fs::is_directory(target, error) && fs::is_empty(target, error))) {
    return absl::InvalidArgumentError(
        absl::StrCat(target, ": already exists; choose another folder or remove this one"));
  }
  std::unique_ptr<ModelFolderWriter> writer(new ModelFolderWriter(target, target + ".thimble-tmp"));
  fs::remove_all(writer->beside_, error);
  error.clear();
  fs::create_directories(writer->beside_, error);
  if (error) {
    const std::string message = absl::StrCat("cannot create ", writer->beside_, ": ", ErrorText(error));
    if (error == std::errc::permission_denied || error == std::errc::read_only_file_system) {
      return absl::PermissionDeniedError(message);
    }
    if (error == std::errc::no_space_on_device) return absl::ResourceExhaustedError(message);
    return absl::InvalidArgumentError(message);
  }
  const std::vector<std::vector<TensorSpec>> shards = SplitShards(tensors, max_shard_bytes);
  nlohmann::json weight_map = nlohmann::json::object();
  int64_t parameters = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name =
        shards.size() == 1 ? kSingleFile : absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, shards.size());
    ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsWriter> shard,
                     SafetensorsWriter::Create(writer->beside_ + "/" + name, shards[i]));
    for (const TensorInfo& tensor : shard->tensors()) {
      if (!writer->shard_of_.emplace(tensor.name, shard.get()).second) {
        return absl::InvalidArgumentError(absl::StrCat(target, ": tensor \"", tensor.name, "\" is given twice"));
      }
      weight_map[tensor.name] = name;
      parameters += tensor.elements;
    }
    writer->data_bytes_ += shard->data_bytes();
    writer->shards_.push_back(std::move(shard));
  }
  RETURN_IF_ERROR(writer->WriteFile("config.json", config.dump(2) + "\n"));
  if (shards.size() > 1) {
    const nlohmann::json index = {{"metadata", {{"total_parameters", parameters}, {"total_size", writer->data_bytes_}}},
                                  {"weight_map", weight_map}};
    RETURN_IF_ERROR(writer->WriteFile(kIndexFile, index.dump(2) + "\n"));
  }
  return writer;
}

ModelFolderWriter::~ModelFolderWriter() {
  if (finished_) return;
  shards_.clear();
  std::error_code error;
  fs::remove_all(beside_, error);
}

absl::Status ModelFolderWriter::Append(std::string_view name, const void* data, int64_t bytes) {
  const auto shard = shard_of_.find(std::string(name));
  CHECK(shard != shard_of_.end()) << "undeclared tensor " << name;
  return shard->second->Append(name, data, bytes);
}

absl::Status ModelFolderWriter::AppendFloats(std::string_view name, ConstVector values) {
  const auto shard = shard_of_.find(std::string(name));
  CHECK(shard != shard_of_.end()) << "undeclared tensor " << name;
  return shard->second->AppendFloats(name, values);
}

absl::Status ModelFolderWriter::WriteFile(const std::string& name, std::string_view content) {
  return WriteFileAtomically(beside_ + "/" + name, content);
}

absl::Status ModelFolderWriter::CarryFiles(const std::string& folder) {
  if (IsGgufFile(folder)) {
    ASSIGN_OR_RETURN(const GgufHeader header, ReadGgufHeader(folder));
    ASSIGN_OR_RETURN(const nlohmann::json tokenizer, GgufTokenizerJson(header));
    ASSIGN_OR_RETURN(const nlohmann::json config, GgufTokenizerConfig(header));
    RETURN_IF_ERROR(WriteFile("tokenizer.json", tokenizer.dump() + "\n"));
    return WriteFile("tokenizer_config.json", config.dump(2) + "\n");
  }
  for (const std::string& name : CarriedFiles(folder)) {
    ASSIGN_OR_RETURN(const std::string content, ReadFile(folder + "/" + name));
    RETURN_IF_ERROR(WriteFile(name, content));
  }
  return absl::OkStatus();
}

absl::Status ModelFolderWriter::Finish() {
  for (const std::unique_ptr<SafetensorsWriter>& shard : shards_) RETURN_IF_ERROR(shard->Finish());
  // rename replaces an empty folder, and fails on one that was filled in the meantime.
  if (std::rename(beside_.c_str(), path_.c_str()) != 0) return ErrnoStatus("rename to", path_);
  finished_ = true;
  SyncFolderOf(path_);
  return absl::OkStatus();
}

}  // namespace thimble
