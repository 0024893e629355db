// thimble inspect: what is in a safetensors file, a Hugging Face folder or a recipe.
#include <gflags/gflags.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "data/file.h"
#include "data/gguf_header.h"
#include "data/tensor_file.h"
#include "ops/check.h"
#include "recipes/commands/commands.h"
#include "recipes/commands/flags.h"
#include "recipes/recipe_reader.h"
#include "recipes/recipe_writer.h"

DEFINE_bool(all, false, "List every tensor, not one line for the same tensor of all layers.");

namespace thimble {
namespace {

using Json = nlohmann::ordered_json;

struct ListedTensor {
  std::string file;
  TensorInfo info;
};

struct Contents {
  std::vector<ListedTensor> tensors;
  std::map<std::string, std::string> metadata;
  Json config;  // of a folder; null where there is none
};

std::string MiB(int64_t bytes) { return absl::StrFormat("%.1f MiB", static_cast<double>(bytes) / (1 << 20)); }

// Under the names of the file itself.
absl::Status AddGguf(const std::string& path, Contents* contents) {
  ASSIGN_OR_RETURN(const GgufHeader header, ReadGgufHeader(path));
  const std::string name = std::filesystem::path(path).filename().string();
  for (const TensorInfo& info : header.tensors()) contents->tensors.push_back({name, info});
  for (const GgufEntry& entry : header.entries()) contents->metadata[entry.key] = entry.value.Text();
  return absl::OkStatus();
}

absl::Status AddFile(const std::string& path, Contents* contents) {
  if (IsGgufFile(path)) return AddGguf(path, contents);
  ASSIGN_OR_RETURN(const std::unique_ptr<TensorFile> file, TensorFile::Open(path));
  const std::string name = std::filesystem::path(path).filename().string();
  for (const TensorInfo& info : file->tensors()) contents->tensors.push_back({name, info});
  contents->metadata.insert(file->metadata().begin(), file->metadata().end());
  return absl::OkStatus();
}

absl::Status AddFolder(const std::string& folder, Contents* contents) {
  std::vector<std::string> files;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path().string());
  }
  if (error) return absl::PermissionDeniedError(absl::StrCat("cannot list ", folder, ": ", error.message()));
  std::sort(files.begin(), files.end());
  const std::string config_path = (std::filesystem::path(folder) / "config.json").string();
  const absl::StatusOr<std::string> config = ReadFile(config_path);
  if (files.empty() && !config.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(folder, ": expected a Hugging Face folder, found neither config.json nor *.safetensors"));
  }
  if (config.ok()) {
    contents->config = Json::parse(*config, nullptr, /*allow_exceptions=*/false);
    if (contents->config.is_discarded()) return absl::InvalidArgumentError(config_path + ": not valid JSON");
  }
  for (const std::string& file : files) RETURN_IF_ERROR(AddFile(file, contents));
  return absl::OkStatus();
}

// Tensors, elements and bytes of each dtype.
Json Totals(const Contents& contents) {
  Json totals = Json::object();
  for (const ListedTensor& tensor : contents.tensors) {
    Json& total = totals[std::string(NameOf(tensor.info.dtype))];
    if (total.is_null()) total = {{"tensors", 0}, {"elements", 0}, {"bytes", 0}};
    total["tensors"] = total["tensors"].get<int64_t>() + 1;
    total["elements"] = total["elements"].get<int64_t>() + tensor.info.elements;
    total["bytes"] = total["bytes"].get<int64_t>() + tensor.info.bytes;
  }
  return totals;
}

void PrintJson(const Contents& contents) {
  Json tensors = Json::array();
  for (const ListedTensor& tensor : contents.tensors) {
    tensors.push_back({{"name", tensor.info.name},
                       {"dtype", std::string(NameOf(tensor.info.dtype))},
                       {"shape", tensor.info.shape},
                       {"bytes", tensor.info.bytes},
                       {"file", tensor.file}});
  }
  const Json page = {{"config", contents.config},
                     {"metadata", contents.metadata},
                     {"dtypes", Totals(contents)},
                     {"tensors", std::move(tensors)}};
  std::printf("%s\n", page.dump(1, ' ', false, Json::error_handler_t::replace).c_str());
}

// "model.layers.*.mlp.up_proj.weight": numbers between dots become stars.
std::string FoldedName(const std::string& name) {
  std::string folded;
  for (size_t i = 0; i < name.size();) {
    size_t end = i;
    while (end < name.size() && std::isdigit(static_cast<unsigned char>(name[end]))) ++end;
    const bool is_part = end > i && (i == 0 || name[i - 1] == '.') && (end == name.size() || name[end] == '.');
    if (is_part) {
      folded += '*';
      i = end;
    } else {
      folded += name[i++];
    }
  }
  return folded;
}

void PrintTensors(const Contents& contents) {
  struct Line {
    std::string name, shape;
    int64_t count = 0, bytes = 0;
  };
  std::vector<Line> lines;
  std::map<std::string, size_t> index;
  size_t width = 0;
  for (const ListedTensor& tensor : contents.tensors) {
    const std::string name = FLAGS_all ? tensor.info.name : FoldedName(tensor.info.name);
    const std::string shape = absl::StrCat(std::string(NameOf(tensor.info.dtype)), " ", ShapeText(tensor.info.shape));
    const auto [place, is_new] = index.insert({name + " " + shape, lines.size()});
    if (is_new) lines.push_back({name, shape});
    lines[place->second].count += 1;
    lines[place->second].bytes += tensor.info.bytes;
    width = std::max(width, name.size());
  }
  for (const Line& line : lines) {
    std::printf("%-*s  %s%s  %s\n", static_cast<int>(width), line.name.c_str(), line.shape.c_str(),
                line.count > 1 ? absl::StrCat(" x", line.count).c_str() : "", MiB(line.bytes).c_str());
  }
}

void PrintText(const Contents& contents) {
  for (const auto& [key, value] : contents.config.items()) {
    std::printf("%s: %s\n", key.c_str(), value.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
  }
  for (const auto& [key, value] : contents.metadata) std::printf("metadata %s: %s\n", key.c_str(), value.c_str());
  if (!contents.config.empty() || !contents.metadata.empty()) std::printf("\n");
  PrintTensors(contents);
  std::printf("\n");
  const Json totals = Totals(contents);
  for (const auto& [dtype, total] : totals.items()) {
    std::printf("%s: %lld tensors, %lld elements, %s\n", dtype.c_str(),
                static_cast<long long>(total["tensors"].get<int64_t>()),
                static_cast<long long>(total["elements"].get<int64_t>()), MiB(total["bytes"].get<int64_t>()).c_str());
  }
}

absl::Status InspectRecipe(const std::string& path, const std::vector<std::string>& overrides) {
  ASSIGN_OR_RETURN(const Recipe recipe, ReadRecipe(path, overrides));
  std::fputs(FLAGS_json ? RecipeJson(recipe).c_str() : WriteRecipe(recipe).c_str(), stdout);
  return absl::OkStatus();
}

absl::Status Run(const CommandLine& line) {
  const std::string& path = line.arguments[0];
  const std::string extension = std::filesystem::path(path).extension().string();
  std::error_code error;
  Contents contents;
  if (std::filesystem::is_directory(path, error)) {
    RETURN_IF_ERROR(AddFolder(path, &contents));
  } else if (extension == ".yaml" || extension == ".yml") {
    return InspectRecipe(path, line.Values("set"));
  } else {
    RETURN_IF_ERROR(AddFile(path, &contents));
  }
  if (!line.Values("set").empty()) return absl::InvalidArgumentError("--set is for recipes, and " + path + " is none");
  if (FLAGS_json) {
    PrintJson(contents);
  } else {
    PrintText(contents);
  }
  return absl::OkStatus();
}

}  // namespace

Command InspectCommand() {
  Command command;
  command.name = "inspect";
  command.summary = "Show what a safetensors or GGUF file, a model folder or a recipe holds.";
  command.usage = "FILE|FOLDER|RECIPE";
  command.description =
      "A safetensors or GGUF file or a Hugging Face folder: its config or metadata, and\n"
      "every tensor's name, type, shape and size. The file is checked as a whole. A\n"
      "recipe (.yaml): the recipe with all defaults filled in, checked. With --json the\n"
      "keys are config, metadata, dtypes and tensors (name, dtype, shape, bytes, file);\n"
      "for a recipe those of the recipe.";
  command.example =
      "  thimble inspect model.safetensors\n"
      "  thimble inspect recipes/qlora.yaml --set adapter.rank=32";
  command.min_arguments = 1;
  command.max_arguments = 1;
  command.flags = {"all", "json", "set"};
  command.repeated_flags = {"set"};
  command.run = Run;
  return command;
}

}  // namespace thimble
