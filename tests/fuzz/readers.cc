#include "tests/fuzz/readers.h"

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>

#include "data/choice_rows.h"
#include "data/dataset.h"
#include "data/gguf_header.h"
#include "data/gguf_model.h"
#include "data/gguf_tokenizer.h"
#include "data/hdf5_file.h"
#include "data/model_folder.h"
#include "data/stored_weight.h"
#include "data/tokenizer.h"
#include "recipes/recipe_reader.h"
#include "recipes/recipe_writer.h"
#include "trainer/checkpoint.h"
#include "trainer/weight_loader.h"

namespace thimble {
namespace {

namespace fs = std::filesystem;

// Larger weights are declared by no file that is worth a fuzzer's time.
constexpr int64_t kMostValues = int64_t{1} << 20;

// A folder of this process, gone when it ends.
const std::string& Folder() {
  static const struct Made {
    std::string path = (fs::temp_directory_path() / ("thimble_fuzz_" + std::to_string(::getpid()))).string();
    Made() { fs::create_directories(path); }
    ~Made() { fs::remove_all(path); }
  } made;
  return made.path;
}

std::string Written(const std::string& name, std::string_view bytes) {
  const std::string path = Folder() + "/" + name;
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  return path;
}

bool ReadTensors(const ModelFolder& folder) {
  bool whole = true;
  std::vector<char> bytes;
  std::vector<float> values;
  for (const TensorRef& tensor : folder.tensors()) {
    const TensorInfo& info = *tensor.info;
    bytes.resize(static_cast<size_t>(std::min<int64_t>(info.bytes, 4096)));
    const int64_t count = static_cast<int64_t>(bytes.size());
    whole = tensor.file->ReadBytes(info, info.bytes - count, count, bytes.data()).ok() && whole;
    values.resize(static_cast<size_t>(std::min<int64_t>(info.elements, 1024)));
    (void)tensor.file->ReadFloats(info, info.elements - static_cast<int64_t>(values.size()),
                                  static_cast<int64_t>(values.size()), values.data());
  }
  for (const std::string& name : StoredNames(folder)) {
    const absl::StatusOr<QuantizedWeight> weight = ReadStoredWeight(folder, name);
    whole = weight.ok() && whole;
    if (!weight.ok() || weight->rows * weight->cols > kMostValues) continue;
    values.resize(static_cast<size_t>(weight->rows * weight->cols));
    DecodeRow(weight->View(), 0, 0, weight->rows * weight->cols, values.data());
  }
  return whole;
}

bool ReadSafetensors(std::string_view bytes) {
  const std::string path = Written("model.safetensors", bytes);
  const absl::StatusOr<std::unique_ptr<TensorFile>> file = TensorFile::Open(path);
  if (!file.ok()) return false;
  std::vector<float> values;
  for (const TensorInfo& info : (*file)->tensors()) {
    values.resize(static_cast<size_t>(std::min<int64_t>(info.elements, 4096)));
    (void)(*file)->ReadFloats(info, 0, static_cast<int64_t>(values.size()), values.data());
  }
  return true;
}

// config.json, a line "----", and model.safetensors.
bool ReadModelFolder(std::string_view bytes) {
  constexpr std::string_view kLine = "\n----\n";
  const size_t at = bytes.find(kLine);
  if (at == std::string_view::npos) return false;
  Written("config.json", bytes.substr(0, at));
  Written("model.safetensors", bytes.substr(at + kLine.size()));
  const absl::StatusOr<std::unique_ptr<ModelFolder>> folder = ModelFolder::Open(Folder());
  if (!folder.ok()) return false;
  const bool tensors = ReadTensors(**folder), config = ReadDecoderConfig(**folder).ok();
  return StorageForConfig((*folder)->config(), "config.json", QuantizationOptions()).ok() && tensors && config;
}

bool UseTokenizer(const absl::StatusOr<std::unique_ptr<Tokenizer>>& tokenizer) {
  if (!tokenizer.ok()) return false;
  const std::string text = "Zoë's 12 tea-pots\n\t<s>are ▁ full!  ";
  const std::vector<int32_t> ids = (*tokenizer)->Encode(text, /*add_special_tokens=*/true);
  (void)(*tokenizer)->Decode(ids, /*skip_special_tokens=*/false);
  return true;
}

bool ReadTokenizer(std::string_view bytes) { return UseTokenizer(Tokenizer::FromJson(bytes, "tokenizer.json")); }

bool ReadGguf(std::string_view bytes) {
  const std::string path = Written("model.gguf", bytes);
  const absl::StatusOr<GgufHeader> header = ReadGgufHeader(path);
  if (!header.ok()) return false;
  const absl::StatusOr<nlohmann::json> tokenizer = GgufTokenizerJson(*header);
  const bool tokens = tokenizer.ok() && UseTokenizer(Tokenizer::FromJson(tokenizer->dump(), path));
  (void)GgufTokenizerConfig(*header);
  const absl::StatusOr<std::unique_ptr<ModelFolder>> folder = ModelFolder::Open(path);
  if (!folder.ok()) return false;
  const bool tensors = ReadTensors(**folder);
  return ReadDecoderConfig(**folder).ok() && tensors && tokens;
}

bool ReadRecipeText(std::string_view bytes) {
  const absl::StatusOr<recipe::Recipe> recipe = ParseRecipe(bytes, "recipe.yaml", {});
  return recipe.ok() && ParseRecipe(WriteRecipe(*recipe), "recipe.yaml", {}).ok();
}

// All rows of a data set.
bool ReadRows(const std::string& path) {
  DatasetOptions options;
  options.files = {path};
  options.label_columns = {"language"};
  absl::StatusOr<std::unique_ptr<DatasetReader>> reader = DatasetReader::Open(options);
  Row row;
  while (reader.ok()) {
    const absl::StatusOr<bool> more = (*reader)->Next(&row);
    if (!more.ok() || !*more) return more.ok();
  }
  return false;
}

bool ReadData(std::string_view bytes) {
  const std::string json = Written("rows.jsonl", bytes);
  const bool rows = ReadRows(json), choices = ReadChoiceRows(json).ok(), text = ReadRows(Written("rows.txt", bytes));
  // What begins like JSON is meant as such, though any text is a row.
  return rows || choices || (text && bytes[0] != '{' && bytes[0] != '[');
}

// A checkpoint whose parts are as they should be, missing, of another type, or of another shape, as the bytes say. Its
// checksum is right, which that of a damaged file never is.
bool ReadMadeCheckpoint(std::string_view bytes, Store* store) {
  Hdf5Writer writer;
  std::vector<char> data(256);
  for (size_t i = 0; i < data.size(); ++i) data[i] = bytes.empty() ? 0 : bytes[i % bytes.size()];
  size_t next = 0;
  const auto choose = [&bytes, &next]() { return next < bytes.size() ? static_cast<uint8_t>(bytes[next++]) : 0; };
  for (const char* name : {"tensors/w", "moments/w/exp_avg", "moments/w/exp_avg_sq"}) {
    const uint8_t how = choose();
    if (how % 4 == 1) continue;
    const Hdf5Type type = how % 4 == 2 ? static_cast<Hdf5Type>(how / 4 % 6) : Hdf5Type::kF32;
    std::vector<int64_t> shape = {3, 4};
    if (how % 4 == 3) shape = {how / 4 % 5, how / 32 % 8};
    writer.AddArray(name, type, shape, data.data());
  }
  for (const char* name : {"state/step", "state/micro_step", "state/epoch", "state/batch", "state/tokens",
                           "state/targets", "state/best_step", "state/evaluations_without_gain"}) {
    const uint8_t how = choose();
    if (how % 4 == 0) writer.AddInt(name, static_cast<int8_t>(how));
    if (how % 4 == 1) writer.AddFloat(name, how);
    if (how % 4 == 2) writer.AddText(name, std::string(bytes.substr(0, how / 4)));
  }
  for (const char* name :
       {"state/seconds", "state/train_loss", "state/loss_before", "state/last_eval_loss", "state/best_eval_loss"}) {
    const uint8_t how = choose();
    if (how % 4 == 0) writer.AddFloat(name, static_cast<int8_t>(how));
    if (how % 4 == 1) writer.AddInt(name, how);
  }
  for (const char* name :
       {"identity/recipe", "identity/base", "identity/data", "identity/compute", "identity/data_form"}) {
    const uint8_t how = choose();
    if (how % 4 != 1) writer.AddText(name, std::string(bytes.substr(std::min<size_t>(how, bytes.size()))));
  }
  const std::string path = Folder() + "/made.h5";
  if (!writer.Commit(path).ok()) return false;
  (void)ReadBestStep(path);
  const absl::StatusOr<RunIdentity> identity = ReadCheckpointIdentity(path);
  (void)LoadCheckpointTensors(path, store);
  return LoadCheckpoint(path, identity.ok() ? *identity : RunIdentity(), store).ok();
}

bool ReadCheckpoint(std::string_view bytes) {
  Store store;
  store.MakeTrainable(store.Add("w", 3, 4, Category::kParameters), true);
  store.Allocate();
  const std::string path = Written("step.h5", bytes);
  (void)LoadCheckpointTensors(path, &store);
  return ReadMadeCheckpoint(bytes, &store);
}

}  // namespace

const std::vector<FuzzReader>& FuzzReaders() {
  static const auto* readers = new std::vector<FuzzReader>{
      {"safetensors", ReadSafetensors}, {"model_folder", ReadModelFolder}, {"gguf", ReadGguf},
      {"tokenizer", ReadTokenizer},     {"recipe", ReadRecipeText},        {"data", ReadData},
      {"checkpoint", ReadCheckpoint},
  };
  return *readers;
}

}  // namespace thimble
