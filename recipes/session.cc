#include "recipes/session.h"

#include <algorithm>
#include <filesystem>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "data/gguf_header.h"
#include "data/json_file.h"
#include "ops/check.h"
#include "ops/compute_rate.h"
#include "ops/parallel.h"
#include "recipes/recipe_options.h"
#include "recipes/recipe_reader.h"
#include "recipes/served_options.h"
#include "trainer/checkpoint.h"

namespace thimble {
namespace {

namespace fs = std::filesystem;
using recipe::Recipe;

absl::Status OpenTokenizer(const std::string& path, ModelSession* model) {
  std::error_code error;
  const bool folder = fs::is_directory(path, error);
  model->tokenizer_folder = folder || IsGgufFile(path) ? path : fs::path(path).parent_path().string();
  model->tokenizer_file = folder ? (fs::path(path) / "tokenizer.json").string() : path;
  ASSIGN_OR_RETURN(model->tokenizer, Tokenizer::Load(model->tokenizer_file));
  ASSIGN_OR_RETURN(model->tokens, LoadModelTokens(model->tokenizer_folder, *model->tokenizer));
  return absl::OkStatus();
}

Compute ChooseCompute(ModelSession* model) {
  if (model->recipe.compute() == Recipe::COMPUTE_AUTO) {
    const ComputeRates rates = MeasureComputeRates();
    model->compute_reason = rates.reason;
    // Written back, so that a resumed run multiplies the same way on any machine.
    model->recipe.set_compute(rates.choice == Compute::kBF16 ? Recipe::COMPUTE_BF16 : Recipe::COMPUTE_F32);
  }
  return model->recipe.compute() == Recipe::COMPUTE_BF16 ? Compute::kBF16 : Compute::kF32;
}

absl::Status CheckVocabulary(const ModelSession& model, const DecoderConfig& config) {
  if (model.tokenizer->vocab_size() <= config.vocab_size) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(model.tokenizer_file, ": the tokenizer has ids up to ",
                                                 model.tokenizer->vocab_size() - 1, ", but the model's vocabulary has ",
                                                 config.vocab_size, " rows; take the tokenizer that belongs to it"));
}

// What the run would refuse to write at its end.
absl::Status CheckExport(const ModelSession& model) {
  const Recipe& recipe = model.recipe;
  if (recipe.output().export_().format() != recipe::Export::FORMAT_GGUF || model.tokenizer == nullptr) {
    return absl::OkStatus();
  }
  return CheckGgufExport(model.decoder, model.store, model.Source(), *ExportedMix(recipe));
}

absl::Status Declare(ModelSession* model) {
  const Recipe& recipe = model->recipe;
  if (model->base != nullptr) {
    ASSIGN_OR_RETURN(model->config, ReadDecoderConfig(*model->base));
  } else if (!model->bare_config_path.empty()) {
    ASSIGN_OR_RETURN(model->config, ParseDecoderConfig(model->bare_config, model->bare_config_path));
  } else {
    model->config = FreshDecoderConfigOf(recipe.model().config(), model->tokenizer->vocab_size());
    model->config.bos_token_id = model->tokens.bos_id;
    if (model->tokens.eos_id >= 0) model->config.eos_token_ids = {model->tokens.eos_id};
  }
  if (model->tokenizer != nullptr) RETURN_IF_ERROR(CheckVocabulary(*model, model->config));
  const std::string export_format = recipe::Export::Format_Name(recipe.output().export_().format());
  if (model->config.ternary && WeightFormatNamed(export_format).has_value()) {
    return absl::InvalidArgumentError(
        "output.export.format: nf4 and the formats behind it are for full-precision weights, and this model's are "
        "ternary; set it to merged");
  }
  if (!model->config.ternary && recipe.output().export_().format() == recipe::Export::FORMAT_PACKED) {
    return absl::InvalidArgumentError(
        "output.export.format: packed is for ternary models (BitNet), and this is none; set it to merged");
  }
  model->quantization = QuantizationOptionsOf(recipe);
  if (model->config.ternary && HasScales(model->quantization.format)) {
    return absl::InvalidArgumentError(
        "quantization.format: this model's linear layers are ternary already, two bits a weight; set it to none");
  }
  ASSIGN_OR_RETURN(model->decoder, DeclareWeights(*model, recipe, ChooseCompute(model), &model->store));
  return absl::OkStatus();
}

// Whether a base is there by its configuration alone.
bool IsBareConfiguration(const std::string& path) {
  std::error_code error;
  if (fs::is_regular_file(path, error)) return !IsGgufFile(path);
  if (!fs::is_regular_file(fs::path(path) / "config.json", error)) return false;
  for (const fs::directory_entry& entry : fs::directory_iterator(path, error)) {
    if (entry.path().extension() == ".safetensors") return false;
  }
  return true;
}

absl::Status OpenBareConfiguration(const std::string& path, std::string* config_path, nlohmann::json* config) {
  std::error_code error;
  const bool folder = fs::is_directory(path, error);
  *config_path = folder ? (fs::path(path) / "config.json").string() : path;
  ASSIGN_OR_RETURN(*config, ReadJsonObject(*config_path));
  return absl::OkStatus();
}

// A teacher's distribution means nothing where its ids mean something else.
absl::Status CheckTeacherTokens(const ModelSession& model, const std::string& path, bool may_be_bare) {
  if (model.config.vocab_size != model.teacher_config.vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat("distillation.teacher: ", path, " has ",
                                                   model.teacher_config.vocab_size, " tokens, the student has ",
                                                   model.config.vocab_size, "; expected the same vocabulary"));
  }
  std::error_code error;
  const std::string file = IsGgufFile(path) ? path : (fs::path(path) / "tokenizer.json").string();
  if (may_be_bare && (model.tokenizer == nullptr || !fs::exists(file, error))) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(file));
  const int64_t ids = std::max(model.tokenizer->vocab_size(), tokenizer->vocab_size());
  for (int32_t id = 0; id < ids; ++id) {
    const std::string ours(model.tokenizer->TokenText(id)), theirs(tokenizer->TokenText(id));
    if (ours == theirs) continue;
    return absl::InvalidArgumentError(absl::StrCat("distillation.teacher: ", file, ": token ", id, " is '", theirs,
                                                   "', the student's is '", ours,
                                                   "'; expected a teacher with the same tokenizer"));
  }
  return absl::OkStatus();
}

absl::Status OpenTeacher(bool may_be_bare, ModelSession* model) {
  const std::string& path = model->recipe.distillation().teacher();
  if (may_be_bare && IsBareConfiguration(path)) {
    RETURN_IF_ERROR(OpenBareConfiguration(path, &model->teacher_bare_config_path, &model->teacher_bare_config));
    ASSIGN_OR_RETURN(model->teacher_config,
                     ParseDecoderConfig(model->teacher_bare_config, model->teacher_bare_config_path));
  } else {
    ASSIGN_OR_RETURN(model->teacher, ModelFolder::Open(path));
    ASSIGN_OR_RETURN(model->teacher_config, ReadDecoderConfig(*model->teacher));
  }
  return absl::OkStatus();
}

// The teacher beside the student, as it is stored.
absl::Status DeclareTeacher(const ModelSession& model, const Recipe& recipe, Store* store, Decoder* decoder) {
  const bool bare = !model.teacher_bare_config_path.empty();
  if (model.teacher == nullptr && !bare) return absl::OkStatus();
  StorageOf storage;
  if (bare) {
    ASSIGN_OR_RETURN(
        storage, StorageForConfig(model.teacher_bare_config, model.teacher_bare_config_path, QuantizationOptions()));
  } else {
    storage = StorageFor(*model.teacher, QuantizationOptions());
  }
  ASSIGN_OR_RETURN(Decoder teacher,
                   DeclareDecoder(model.teacher_config, AdapterOptions(), /*train_weights=*/false, decoder->compute,
                                  storage, store, /*train_embeddings=*/false, kTeacherPrefix));
  const recipe::Memory& memory = recipe.memory();
  const recipe::Distillation& from = recipe.distillation();
  const recipe::Memory::Weights weights = from.has_weights() ? from.weights() : memory.weights();
  if (weights != recipe::Memory::WEIGHTS_DEVICE) {
    StreamLinearLayers(teacher, store);
    StreamEmbeddings(teacher, store);
  }
  if (weights == recipe::Memory::WEIGHTS_HOST) store->StreamFromHost();
  decoder->teacher = std::make_shared<const Decoder>(std::move(teacher));
  return absl::OkStatus();
}

// Where a base's tokenizer is looked for: in a folder, or in the GGUF file that the base is.
std::string FolderOfBase(const std::string& path) {
  std::error_code error;
  return fs::is_regular_file(path, error) && !IsGgufFile(path) ? fs::path(path).parent_path().string() : path;
}

absl::StatusOr<std::string> ChooseCheckpoint(const std::string& run, bool best) {
  const std::vector<int64_t> steps = ListCheckpoints(run);
  if (steps.empty()) {
    return absl::NotFoundError(absl::StrCat(run, ": the run has no checkpoint yet"));
  }
  if (best) {
    ASSIGN_OR_RETURN(const int64_t step, ReadBestStep(CheckpointPath(run, steps.back())));
    std::error_code error;
    if (step > 0 && fs::exists(CheckpointPath(run, step), error)) return CheckpointPath(run, step);
  }
  return CheckpointPath(run, steps.back());
}

}  // namespace

ExportSource ModelSession::Source() const {
  return {base.get(), base != nullptr ? base->path() : std::string(), tokenizer_folder};
}

absl::StatusOr<Decoder> DeclareWeights(const ModelSession& model, const Recipe& recipe, Compute compute, Store* store) {
  const QuantizationOptions quantization = QuantizationOptionsOf(recipe);
  const bool train_all = TrainsAllWeights(recipe) && model.path.empty();
  StorageOf storage;
  if (model.base != nullptr) storage = StorageFor(*model.base, quantization);
  if (!model.bare_config_path.empty()) {
    ASSIGN_OR_RETURN(storage, StorageForConfig(model.bare_config, model.bare_config_path, quantization));
  }
  ASSIGN_OR_RETURN(Decoder decoder, DeclareDecoder(model.config, AdapterOptionsOf(recipe), train_all, compute, storage,
                                                   store, TrainsEmbeddings(recipe)));
  const recipe::Memory& memory = recipe.memory();
  const recipe::Memory::Weights embeddings = memory.has_embeddings() ? memory.embeddings() : memory.weights();
  if (memory.weights() != recipe::Memory::WEIGHTS_DEVICE) StreamLinearLayers(decoder, store);
  if (embeddings != recipe::Memory::WEIGHTS_DEVICE) StreamEmbeddings(decoder, store);
  if (memory.weights() == recipe::Memory::WEIGHTS_HOST || embeddings == recipe::Memory::WEIGHTS_HOST) {
    store->StreamFromHost();
  }
  if (recipe.has_qat()) {
    ASSIGN_OR_RETURN(const ServedOptions served, ServedOptionsOf(recipe, model.config));
    DeclareServed(served, &decoder, store);
  }
  RETURN_IF_ERROR(DeclareTeacher(model, recipe, store, &decoder));
  return decoder;
}

absl::StatusOr<std::unique_ptr<ModelSession>> DeclareModel(const Recipe& recipe, ModelParts parts) {
  if (recipe.training().threads() > 0) SetNumThreads(static_cast<int>(recipe.training().threads()));
  auto model = std::make_unique<ModelSession>();
  model->recipe = recipe;
  if (parts == ModelParts::kInference) model->store.WithoutGradients();
  const std::string& base = recipe.model().path();
  const bool may_be_bare = parts == ModelParts::kConfiguration;
  if (recipe.model().has_path() && may_be_bare && IsBareConfiguration(base)) {
    RETURN_IF_ERROR(OpenBareConfiguration(base, &model->bare_config_path, &model->bare_config));
  } else if (recipe.model().has_path()) {
    ASSIGN_OR_RETURN(model->base, ModelFolder::Open(base));
  }
  const std::string tokenizer = recipe.model().has_tokenizer() ? recipe.model().tokenizer() : FolderOfBase(base);
  std::error_code error;
  const bool excused = may_be_bare && !recipe.model().has_tokenizer() && !IsGgufFile(tokenizer) &&
                       !fs::exists(fs::path(tokenizer) / "tokenizer.json", error);
  if (!excused) RETURN_IF_ERROR(OpenTokenizer(tokenizer, model.get()));
  // A model that is only used needs no teacher any more.
  const bool taught = recipe.has_distillation() && parts != ModelParts::kInference;
  if (taught) RETURN_IF_ERROR(OpenTeacher(may_be_bare, model.get()));
  RETURN_IF_ERROR(Declare(model.get()));
  if (parts != ModelParts::kInference) RETURN_IF_ERROR(CheckExport(*model));
  if (taught) RETURN_IF_ERROR(CheckTeacherTokens(*model, recipe.distillation().teacher(), may_be_bare));
  return model;
}

absl::Status LoadModel(ModelSession* model) {
  Store& store = model->store;
  if (store.stream_bytes() > 0) {
    ASSIGN_OR_RETURN(std::unique_ptr<Tier> tier,
                     store.streams_from_host()
                         ? MakeHostTier(store.stream_bytes())
                         : MakeDiskTier(model->recipe.memory().spill_folder(), store.stream_bytes()));
    store.SetWeightTier(std::move(tier));
  }
  RETURN_IF_ERROR(store.TakeMemory());
  if (model->base != nullptr) {
    RETURN_IF_ERROR(LoadWeights(*model->base, model->decoder, model->quantization, &model->store));
  } else {
    InitWeights(model->decoder, static_cast<uint64_t>(model->recipe.training().seed()), &model->store);
  }
  if (model->teacher != nullptr) {
    RETURN_IF_ERROR(LoadWeights(*model->teacher, *model->decoder.teacher, QuantizationOptions(), &model->store));
  }
  return InitAdapters(model->decoder, &model->store);
}

bool IsRunFolder(const std::string& path) {
  std::error_code error;
  return fs::exists(fs::path(path) / "recipe.yaml", error) && fs::is_directory(fs::path(path) / "checkpoints", error);
}

absl::StatusOr<std::unique_ptr<ModelSession>> OpenModel(const std::string& path, bool best) {
  if (IsRunFolder(path)) {
    ASSIGN_OR_RETURN(const Recipe recipe, ReadRecipe((fs::path(path) / "recipe.yaml").string(), {}));
    ASSIGN_OR_RETURN(const std::string checkpoint, ChooseCheckpoint(path, best));
    ASSIGN_OR_RETURN(std::unique_ptr<ModelSession> model, DeclareModel(recipe, ModelParts::kInference));
    RETURN_IF_ERROR(LoadModel(model.get()));
    RunIdentity identity;
    RETURN_IF_ERROR(LoadCheckpointTensors(checkpoint, &model->store, &identity));
    ASSIGN_OR_RETURN(model->prompt_form, ParseRowForm(identity.data_form));
    model->path = path;
    return model;
  }
  auto model = std::make_unique<ModelSession>();
  model->path = path;
  // f32: an evaluation should not depend on the machine.
  model->recipe.set_compute(Recipe::COMPUTE_F32);
  ASSIGN_OR_RETURN(model->base, ModelFolder::Open(path));
  RETURN_IF_ERROR(OpenTokenizer(path, model.get()));
  RETURN_IF_ERROR(Declare(model.get()));
  RETURN_IF_ERROR(LoadModel(model.get()));
  return model;
}

absl::StatusOr<std::unique_ptr<RowEncoder>> MakeEncoder(const ModelSession& model) {
  // Plain texts know no turns.
  const recipe::Data& data = model.recipe.data();
  const bool texts = data.form() == recipe::Data::FORM_TEXT && model.tokens.chat_template.empty() &&
                     data.chat_format() == recipe::Data::CHAT_FORMAT_AUTO;
  ASSIGN_OR_RETURN(ChatFormat format,
                   MakeChatFormat(texts ? "plain" : ChatFormatNameOf(model.recipe), model.tokens, *model.tokenizer));
  if (model.recipe.data().has_system()) format.default_system = model.recipe.data().system();
  return std::make_unique<RowEncoder>(model.tokenizer.get(), model.tokens, std::move(format), LossOnOf(model.recipe));
}

namespace {

// Batches of a data set; an error names its files and the options that decide.
absl::StatusOr<std::unique_ptr<BatchStream>> MakeStream(const TokenisedDataset& set, const PackingOptions& options,
                                                        const std::vector<std::string>& files) {
  absl::StatusOr<BatchStream> stream = BatchStream::Make(set.rows, options);
  if (!stream.ok()) {
    return absl::Status(stream.status().code(),
                        absl::StrCat(absl::StrJoin(files, ", "), ": ", std::string(stream.status().message()),
                                     " (data.seq_len, data.too_long)"));
  }
  return std::make_unique<BatchStream>(*std::move(stream));
}

}  // namespace

namespace {

// The streams of tokenised rows; eval stays null where nothing is held out.
struct Streams {
  std::unique_ptr<BatchStream> train;
  std::unique_ptr<BatchStream> eval;
};
absl::StatusOr<Streams> MakeStreams(const Recipe& recipe, const TokenisedDataset& train,
                                    const TokenisedDataset& validation) {
  Streams streams;
  const PackingOptions packing = PackingOptionsOf(recipe);
  const std::vector<std::string> train_files = TrainDatasetOptionsOf(recipe).files;
  ASSIGN_OR_RETURN(streams.train, MakeStream(train, packing, train_files));
  PackingOptions eval = packing;
  eval.shuffle = false;
  if (recipe.data().validation_size() > 0) {
    ASSIGN_OR_RETURN(streams.eval, MakeStream(validation, eval, ValidationDatasetOptionsOf(recipe).files));
  } else if (packing.held_out_share > 0) {
    eval.held_out = true;
    ASSIGN_OR_RETURN(streams.eval, MakeStream(train, eval, train_files));
  }
  return streams;
}

}  // namespace

absl::StatusOr<DataSession> PrepareData(const ModelSession& model) {
  const Recipe& recipe = model.recipe;
  DataSession data;
  ASSIGN_OR_RETURN(data.encoder, MakeEncoder(model));
  ASSIGN_OR_RETURN(data.train, TokeniseDataset(TrainDatasetOptionsOf(recipe), *data.encoder, model.tokenizer_file,
                                               recipe.data().cache()));
  data.fingerprint = data.train.fingerprint;
  if (recipe.data().validation_size() > 0) {
    ASSIGN_OR_RETURN(data.validation, TokeniseDataset(ValidationDatasetOptionsOf(recipe), *data.encoder,
                                                      model.tokenizer_file, recipe.data().cache()));
    absl::StrAppend(&data.fingerprint, "+", data.validation.fingerprint);
  }
  RETURN_IF_ERROR(Repack(recipe, &data));
  return data;
}

absl::Status Repack(const Recipe& recipe, DataSession* data) {
  ASSIGN_OR_RETURN(Streams streams, MakeStreams(recipe, data->train, data->validation));
  data->train_stream = std::move(streams.train);
  data->eval_stream = std::move(streams.eval);
  return absl::OkStatus();
}

absl::StatusOr<int64_t> LongestMicroBatch(const Recipe& recipe, const DataSession& data) {
  ASSIGN_OR_RETURN(const Streams streams, MakeStreams(recipe, data.train, data.validation));
  return std::max(streams.train->max_batch_tokens(), streams.eval == nullptr ? 0 : streams.eval->max_batch_tokens());
}

}  // namespace thimble
