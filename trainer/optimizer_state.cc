#include "trainer/optimizer_state.h"

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

 private:
  StoreId id_;
  Store& store_;
  std::string name_;
};

}  // namespace

std::string_view NameOf(OptimizerKind kind) {
  switch (kind) {
    case OptimizerKind::kAdamW:
      return "adamw";
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
        declare.Floats("#exp_avg", rows, cols);
        declare.Floats("#exp_avg_sq", rows, cols);
        break;
    }
  }
}

}  // namespace thimble
