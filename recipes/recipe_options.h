// A recipe's sections as the plain structs of data/ and trainer/, which know no recipe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/bnb_weight.h"
#include "data/dataset.h"
#include "data/packing.h"
#include "data/row_encoder.h"
#include "recipes/recipe.pb.h"
#include "trainer/decoder.h"
#include "trainer/engine.h"
#include "trainer/export.h"
#include "trainer/train_loop.h"
#include "trainer/weight_loader.h"

namespace thimble {

// "nf4", "int4_g32", ... as weights are quantised to by their names in recipes, also of a schema's FORMAT_NF4; nothing
// for any other name. And all of them.
std::optional<Quantize4BitOptions> WeightFormatNamed(std::string_view name);
std::vector<std::string> WeightFormatNames();

AdapterOptions AdapterOptionsOf(const recipe::Recipe& recipe);
QuantizationOptions QuantizationOptionsOf(const recipe::Recipe& recipe);
// The shape under model.config, with the vocabulary of the tokenizer where the recipe gives none.
DecoderConfig FreshDecoderConfigOf(const recipe::DecoderShape& shape, int64_t tokenizer_vocab);

DatasetOptions TrainDatasetOptionsOf(const recipe::Recipe& recipe);
DatasetOptions ValidationDatasetOptionsOf(const recipe::Recipe& recipe);
PackingOptions PackingOptionsOf(const recipe::Recipe& recipe);
LossOn LossOnOf(const recipe::Recipe& recipe);
// "auto", "chatml", ...
std::string ChatFormatNameOf(const recipe::Recipe& recipe);
uint64_t DataSeedOf(const recipe::Recipe& recipe);

// But for `activations`, which depends on the model: see save_plan_options.h.
EngineOptions EngineOptionsOf(const recipe::Recipe& recipe);
// The length of the run comes from training.steps, or from training.epochs and the data.
TrainLoopOptions TrainLoopOptionsOf(const recipe::Recipe& recipe, int64_t steps_per_epoch);
ExportOptions ExportOptionsOf(const recipe::Recipe& recipe);

}  // namespace thimble
