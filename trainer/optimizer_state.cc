#include "trainer/optimizer_state.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "ops/check.h"

namespace thimble {
namespace {

// Declares the state of one parameter.
class Declarer {
 public:
  Declarer(StoreId id, Store* store) : id_(id), store_(*store), name_(store->entry(id).name) {}

  void Floats(const char* suffix, int64_t rows, int64_t cols) {
    store_.AttachState(id_, store_.Add(absl::StrCat(name_, suffix), rows, cols, Category::kMoments));
  }
  void Codes(const char* suffix, int64_t count) {
    store_.AttachState(id_, store_.AddCodes(absl::StrCat(name_, suffix), count, Category::kMoments));
  }

 private:
  StoreId id_;
  Store& store_;
  std::string name_;
};

void DeclareAdamW(Declarer* declare, int64_t rows, int64_t cols) {
  declare->Floats("#exp_avg", rows, cols);
  declare->Floats("#exp_avg_sq", rows, cols);
}

void DeclareAdamW8Bit(Declarer* declare, int64_t rows, int64_t cols) {
  const int64_t n = rows * cols;
  if (n < kMin8BitMoments) return DeclareAdamW(declare, rows, cols);
  declare->Codes("#exp_avg", n);
  declare->Codes("#exp_avg_sq", n);
  declare->Floats("#exp_avg_absmax", 1, MomentBlocks(n));
  declare->Floats("#exp_avg_sq_absmax", 1, MomentBlocks(n));
}

void DeclareAdafactor(Declarer* declare, int64_t rows, int64_t cols) {
  if (rows == 1) return declare->Floats("#exp_avg_sq", 1, cols);
  declare->Floats("#exp_avg_sq_row", 1, rows);
  declare->Floats("#exp_avg_sq_col", 1, cols);
}

void DeclareApollo(Declarer* declare, int64_t rows, int64_t cols, int64_t rank) {
  if (std::min(rows, cols) <= rank) return DeclareAdamW(declare, rows, cols);
  const int64_t moment_rows = rows >= cols ? rows : rank;
  const int64_t moment_cols = rows >= cols ? rank : cols;
  DeclareAdamW(declare, moment_rows, moment_cols);
  declare->Floats("#update_norm", 1, 1);
}

}  // namespace

std::string_view NameOf(OptimizerKind kind) {
  switch (kind) {
    case OptimizerKind::kAdamW:
      return "adamw";
    case OptimizerKind::kAdamW8Bit:
      return "adamw8bit";
    case OptimizerKind::kLion:
      return "lion";
    case OptimizerKind::kAdafactor:
      return "adafactor";
    case OptimizerKind::kApollo:
      return "apollo";
  }
  return "";
}

void DeclareOptimizerState(const OptimizerOptions& options, Store* store) {
  for (StoreId id : store->Trainable()) {
    CHECK(store->entry(id).state.empty()) << store->entry(id).name << " has its optimiser state already";
    const int64_t rows = store->entry(id).rows;
    const int64_t cols = store->entry(id).cols;
    Declarer declare(id, store);
    switch (options.kind) {
      case OptimizerKind::kAdamW:
        DeclareAdamW(&declare, rows, cols);
        break;
      case OptimizerKind::kAdamW8Bit:
        DeclareAdamW8Bit(&declare, rows, cols);
        break;
      case OptimizerKind::kLion:
        declare.Floats("#exp_avg", rows, cols);
        break;
      case OptimizerKind::kAdafactor:
        DeclareAdafactor(&declare, rows, cols);
        break;
      case OptimizerKind::kApollo:
        DeclareApollo(&declare, rows, cols, options.projection_rank);
        break;
    }
    if (options.state_tier == StateTier::kDevice) continue;
    for (StoreId state : store->entry(id).state) store->OffloadState(state);
  }
  if (options.state_tier == StateTier::kHost) store->StateToHost();
  if (options.in_backward) store->MoveGradientsToArena();
}

}  // namespace thimble
