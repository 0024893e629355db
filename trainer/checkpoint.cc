#include "trainer/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "data/hdf5_file.h"
#include "ops/check.h"

namespace thimble {
namespace {

namespace fs = std::filesystem;

// One list for writing and reading, so that neither forgets a field.
template <typename State, typename IntField, typename FloatField>
void VisitState(State& state, const IntField& integer, const FloatField& real) {
  integer("state/step", state.step);
  integer("state/micro_step", state.micro_step);
  integer("state/epoch", state.position.epoch);
  integer("state/batch", state.position.index);
  integer("state/tokens", state.tokens);
  integer("state/targets", state.targets);
  real("state/seconds", state.seconds);
  real("state/train_loss", state.train_loss);
  real("state/loss_before", state.loss_before);
  real("state/last_eval_loss", state.last_eval_loss);
  real("state/best_eval_loss", state.best_eval_loss);
  integer("state/best_step", state.best_step);
  integer("state/evaluations_without_gain", state.evaluations_without_gain);
}

std::string TensorKey(const StoreEntry& entry) { return absl::StrCat("tensors/", entry.name); }
// The state "<parameter>#exp_avg" lies at moments/<parameter>/exp_avg.
std::string StateKey(const StoreEntry& state) {
  return absl::StrCat("moments/", absl::StrReplaceAll(state.name, {{"#", "/"}}));
}

// An offloaded state comes and goes in pieces.
constexpr int64_t kPiece = int64_t{1} << 20;

Hdf5Type TypeOf(const StoreEntry& entry) { return entry.codes > 0 ? Hdf5Type::kU8 : Hdf5Type::kF32; }
std::vector<int64_t> ShapeOf(const StoreEntry& entry) {
  return entry.codes > 0 ? std::vector<int64_t>{entry.codes} : std::vector<int64_t>{entry.rows, entry.cols};
}

absl::Status ReadOffloaded(const Hdf5Reader& file, const std::string& key, StoreId id, Store* store) {
  const StoreEntry& entry = store->entry(id);
  ASSIGN_OR_RETURN(const Hdf5Reader::Entry* const stored, file.Find(key, TypeOf(entry)));
  if (stored->shape != ShapeOf(entry)) {
    return absl::DataLossError(absl::StrCat(file.path(), ": ", key, " has another shape than the model's"));
  }
  const int64_t element_bytes = Hdf5TypeBytes(stored->type);
  std::vector<char> piece(static_cast<size_t>(std::min(kPiece, stored->bytes)));
  for (int64_t first = 0; first < stored->bytes; first += kPiece) {
    const int64_t bytes = std::min(kPiece, stored->bytes - first);
    RETURN_IF_ERROR(file.ReadRange(key, stored->type, first / element_bytes, bytes / element_bytes, piece.data()));
    RETURN_IF_ERROR(store->WriteState(id, first, bytes, piece.data()));
  }
  return absl::OkStatus();
}

absl::Status ReadTensor(const Hdf5Reader& file, const std::string& key, StoreId id, Store* store) {
  const StoreEntry& entry = store->entry(id);
  if (entry.slot >= 0) return ReadOffloaded(file, key, id, store);
  return file.Read(key, TypeOf(entry), ShapeOf(entry), store->matrix(id).data);
}

void AddTensor(const std::string& key, const Store& store, StoreId id, Hdf5Writer* writer) {
  const StoreEntry& entry = store.entry(id);
  if (entry.slot < 0) return writer->AddArray(key, TypeOf(entry), ShapeOf(entry), store.matrix(id).data);
  writer->AddArray(key, TypeOf(entry), ShapeOf(entry), [&store, id](int64_t first_byte, absl::Span<char> out) {
    return store.ReadState(id, first_byte, static_cast<int64_t>(out.size()), out.data());
  });
}

// Dotted keys and values of a resolved recipe, as its writer lays it out: two spaces a level, one value a line.
std::map<std::string, std::string> RecipeValues(const std::string& recipe) {
  std::map<std::string, std::string> values;
  std::vector<std::string> sections;
  for (const absl::string_view piece : absl::StrSplit(recipe, '\n', absl::SkipEmpty())) {
    const std::string line(piece);
    const size_t indent = line.find_first_not_of(' ');
    if (indent == std::string::npos) continue;
    const std::string text = line.substr(indent);
    if (absl::StartsWith(text, "- ")) {
      absl::StrAppend(&values[absl::StrJoin(sections, ".")], " ", text);
      continue;
    }
    const size_t colon = text.find(':');
    sections.resize(std::min(indent / 2, sections.size()));
    sections.push_back(text.substr(0, colon));
    const std::string value = colon == std::string::npos ? "" : text.substr(colon + 1);
    if (!value.empty()) values[absl::StrJoin(sections, ".")] = value;
  }
  return values;
}

// "training.seed was 1, is 2; ...", the keys in which two resolved recipes differ.
std::string RecipeDifference(const std::string& saved, const std::string& now) {
  std::map<std::string, std::pair<std::string, std::string>> both;
  for (const auto& [key, value] : RecipeValues(saved)) both[key].first = value;
  for (const auto& [key, value] : RecipeValues(now)) both[key].second = value;
  std::vector<std::string> differences;
  const auto shown = [](const std::string& value) {
    const bool given = !value.empty() && value != " null";
    return given ? std::string(absl::StripLeadingAsciiWhitespace(value)) : std::string("not given");
  };
  for (const auto& [key, pair] : both) {
    if (pair.first == pair.second) continue;
    differences.push_back(absl::StrCat(key, " was ", shown(pair.first), ", is ", shown(pair.second)));
  }
  return absl::StrJoin(differences, "; ");
}

absl::Status CheckIdentity(const std::string& path, const RunIdentity& saved, const RunIdentity& now) {
  const auto refuse = [&path](const std::string& what) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": ", what, "; resume with what the run began with, or start a new run in another folder"));
  };
  if (saved.recipe != now.recipe) {
    return refuse(absl::StrCat("the recipe differs: ", RecipeDifference(saved.recipe, now.recipe)));
  }
  if (saved.base_fingerprint != now.base_fingerprint) {
    return refuse(absl::StrCat("the base model differs: fingerprint was ", saved.base_fingerprint, ", is ",
                               now.base_fingerprint));
  }
  if (saved.data_fingerprint != now.data_fingerprint) {
    return refuse(absl::StrCat("the training data differ: fingerprint was ", saved.data_fingerprint, ", is ",
                               now.data_fingerprint));
  }
  if (saved.compute != now.compute) {
    return refuse(absl::StrCat("compute was ", saved.compute, ", is ", now.compute));
  }
  return absl::OkStatus();
}

absl::StatusOr<RunIdentity> ReadIdentity(const Hdf5Reader& file) {
  RunIdentity identity;
  ASSIGN_OR_RETURN(identity.recipe, file.Text("identity/recipe"));
  ASSIGN_OR_RETURN(identity.base_fingerprint, file.Text("identity/base"));
  ASSIGN_OR_RETURN(identity.data_fingerprint, file.Text("identity/data"));
  ASSIGN_OR_RETURN(identity.compute, file.Text("identity/compute"));
  if (file.Has("identity/data_form")) {
    ASSIGN_OR_RETURN(identity.data_form, file.Text("identity/data_form"));
  }
  return identity;
}

}  // namespace

absl::Status SaveCheckpoint(const std::string& path, const Store& store, const TrainState& state,
                            const RunIdentity& identity) {
  Hdf5Writer writer;
  for (StoreId id : store.Trainable()) {
    const StoreEntry& entry = store.entry(id);
    AddTensor(TensorKey(entry), store, id, &writer);
    for (StoreId state : entry.state) AddTensor(StateKey(store.entry(state)), store, state, &writer);
  }
  VisitState(
      state, [&](const char* key, int64_t value) { writer.AddInt(key, value); },
      [&](const char* key, double value) { writer.AddFloat(key, value); });
  writer.AddText("identity/recipe", identity.recipe);
  writer.AddText("identity/base", identity.base_fingerprint);
  writer.AddText("identity/data", identity.data_fingerprint);
  writer.AddText("identity/compute", identity.compute);
  writer.AddText("identity/data_form", identity.data_form);
  return writer.Commit(path);
}

absl::StatusOr<RunIdentity> ReadCheckpointIdentity(const std::string& path) {
  ASSIGN_OR_RETURN(const Hdf5Reader file, Hdf5Reader::Open(path));
  return ReadIdentity(file);
}

absl::StatusOr<int64_t> ReadBestStep(const std::string& path) {
  ASSIGN_OR_RETURN(const Hdf5Reader file, Hdf5Reader::Open(path));
  return file.Int("state/best_step");
}

absl::StatusOr<TrainState> LoadCheckpoint(const std::string& path, const RunIdentity& identity, Store* store) {
  ASSIGN_OR_RETURN(const Hdf5Reader file, Hdf5Reader::Open(path));
  ASSIGN_OR_RETURN(const RunIdentity saved, ReadIdentity(file));
  RETURN_IF_ERROR(CheckIdentity(path, saved, identity));
  TrainState state;
  absl::Status status;
  VisitState(
      state,
      [&](const char* key, int64_t& value) {
        auto read = file.Int(key);
        if (read.ok()) value = *read;
        status.Update(read.status());
      },
      [&](const char* key, double& value) {
        auto read = file.Float(key);
        if (read.ok()) value = *read;
        status.Update(read.status());
      });
  RETURN_IF_ERROR(status);
  for (StoreId id : store->Trainable()) {
    const StoreEntry& entry = store->entry(id);
    RETURN_IF_ERROR(ReadTensor(file, TensorKey(entry), id, store));
    for (StoreId state : entry.state) {
      RETURN_IF_ERROR(ReadTensor(file, StateKey(store->entry(state)), state, store));
    }
  }
  store->SetServedIsOld(true);
  return state;
}

absl::Status LoadCheckpointTensors(const std::string& path, Store* store, RunIdentity* identity) {
  ASSIGN_OR_RETURN(const Hdf5Reader file, Hdf5Reader::Open(path));
  if (identity != nullptr) {
    ASSIGN_OR_RETURN(*identity, ReadIdentity(file));
  }
  for (StoreId id : store->Trainable()) {
    RETURN_IF_ERROR(ReadTensor(file, TensorKey(store->entry(id)), id, store));
  }
  store->SetServedIsOld(true);
  return absl::OkStatus();
}

std::string CheckpointPath(const std::string& run_folder, int64_t step) {
  return absl::StrFormat("%s/checkpoints/step-%08d.h5", run_folder, step);
}

std::vector<int64_t> ListCheckpoints(const std::string& run_folder) {
  std::vector<int64_t> steps;
  std::error_code error;
  for (const auto& file : fs::directory_iterator(fs::path(run_folder) / "checkpoints", error)) {
    const std::string name = file.path().filename().string();
    int64_t step;
    if (!absl::StartsWith(name, "step-") || !absl::EndsWith(name, ".h5")) continue;
    if (absl::SimpleAtoi(name.substr(5, name.size() - 8), &step)) steps.push_back(step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

void PruneCheckpoints(const std::string& run_folder, int64_t keep_last, int64_t best_step) {
  std::error_code error;
  for (const auto& file : fs::directory_iterator(fs::path(run_folder) / "checkpoints", error)) {
    if (file.path().extension() == ".tmp") fs::remove(file.path(), error);
  }
  std::vector<int64_t> steps = ListCheckpoints(run_folder);
  const int64_t old = static_cast<int64_t>(steps.size()) - std::max<int64_t>(keep_last, 1);
  for (int64_t i = 0; i < old; ++i) {
    if (steps[i] != best_step) fs::remove(CheckpointPath(run_folder, steps[i]), error);
  }
}

}  // namespace thimble
