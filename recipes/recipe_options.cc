#include "recipes/recipe_options.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/ascii.h"
#include "ops/quantize_scaled.h"
#include "recipes/recipe_reader.h"

namespace thimble {

using recipe::Adapter;
using recipe::Data;
using recipe::Export;
using recipe::Optimizer;
using recipe::Quantization;
using recipe::Recipe;
using recipe::Schedule;

AdapterOptions AdapterOptionsOf(const Recipe& recipe) {
  const Adapter& from = recipe.adapter();
  AdapterOptions adapter;
  if (from.type() == Adapter::TYPE_NONE) return adapter;
  adapter.rank = from.rank();
  adapter.alpha = from.alpha();
  adapter.dropout = from.dropout();
  adapter.rslora = from.rslora();
  adapter.dora = from.type() == Adapter::TYPE_DORA;
  adapter.gaussian_init = from.init() == Adapter::INIT_GAUSSIAN;
  adapter.seed = static_cast<uint64_t>(from.has_seed() ? from.seed() : recipe.training().seed());
  for (const std::string& target : from.targets()) {
    if (target == "all-linear") {
      adapter.targets = LinearNames();
      return adapter;
    }
    adapter.targets.push_back(target);
  }
  if (adapter.targets.empty()) adapter.targets = LinearNames();
  return adapter;
}

std::optional<Quantize4BitOptions> WeightFormatNamed(std::string_view name) {
  if (name.substr(0, 7) == "FORMAT_") name.remove_prefix(7);
  const std::string lower = absl::AsciiStrToLower(std::string(name));
  if (lower == "nf4") return Quantize4BitOptions{Format::kNF4};
  if (lower == "fp4") return Quantize4BitOptions{Format::kFP4};
  const ScaledScheme* scheme = FindScaledScheme(lower);
  if (scheme == nullptr) return std::nullopt;
  return Quantize4BitOptions{scheme->format, scheme->group, false};
}

std::vector<std::string> WeightFormatNames() {
  std::vector<std::string> names = {"nf4", "fp4"};
  for (const ScaledScheme& scheme : ScaledSchemes()) names.emplace_back(scheme.name);
  return names;
}

QuantizationOptions QuantizationOptionsOf(const Recipe& recipe) {
  const Quantization& from = recipe.quantization();
  QuantizationOptions options;
  if (const auto how = WeightFormatNamed(Quantization::Format_Name(from.format()))) {
    options.format = how->format;
    options.block_size = how->block_size;
  }
  if (Is4Bit(options.format)) {
    options.block_size = static_cast<int32_t>(from.block_size());
    options.double_quant = from.double_quant();
  }
  options.skip.assign(from.skip().begin(), from.skip().end());
  return options;
}

DecoderConfig FreshDecoderConfigOf(const recipe::DecoderShape& shape, int64_t tokenizer_vocab) {
  DecoderConfig config;
  const bool bitnet = shape.architecture() == recipe::DecoderShape::ARCHITECTURE_BITNET;
  config.model_type = bitnet ? "bitnet" : "llama";
  config.sub_norms = bitnet;
  config.ternary = bitnet && shape.ternary();
  if (bitnet && shape.activation() == recipe::DecoderShape::ACTIVATION_RELU2) {
    config.activation = GateActivation::kReluSquared;
  }
  config.hidden_dim = shape.hidden_dim();
  config.num_layers = shape.num_layers();
  config.num_heads = shape.num_heads();
  config.num_kv_heads = shape.has_num_kv_heads() ? shape.num_kv_heads() : shape.num_heads();
  config.head_dim = shape.has_head_dim() ? shape.head_dim() : shape.hidden_dim() / shape.num_heads();
  config.intermediate_dim = shape.intermediate_dim();
  config.vocab_size = shape.has_vocab_size() ? shape.vocab_size() : tokenizer_vocab;
  config.max_position = shape.max_position();
  config.rope_theta = shape.rope_theta();
  config.rms_norm_eps = static_cast<float>(shape.rms_norm_eps());
  config.tie_embeddings = shape.tie_embeddings();
  config.init_std = static_cast<float>(shape.init_std());
  config.windows.assign(config.num_layers, 0);
  return config;
}

DatasetOptions TrainDatasetOptionsOf(const Recipe& recipe) {
  const Data& from = recipe.data();
  DatasetOptions options;
  options.files.assign(from.train().begin(), from.train().end());
  switch (from.form()) {
    case Data::FORM_AUTO:
      options.form = RowForm::kAuto;
      break;
    case Data::FORM_ALPACA:
      options.form = RowForm::kAlpaca;
      break;
    case Data::FORM_MESSAGES:
      options.form = RowForm::kMessages;
      break;
    case Data::FORM_PROMPT_COMPLETION:
      options.form = RowForm::kPromptCompletion;
      break;
    case Data::FORM_TEXT:
      options.form = RowForm::kText;
      break;
  }
  const recipe::Columns& columns = from.columns();
  options.columns = {columns.instruction(), columns.input(), columns.output(),  columns.system(),
                     columns.messages(),    columns.role(),  columns.content(), columns.prompt(),
                     columns.completion(),  columns.text()};
  options.text_separator = from.text_separator();
  options.max_rows = from.max_rows();
  return options;
}

DatasetOptions ValidationDatasetOptionsOf(const Recipe& recipe) {
  DatasetOptions options = TrainDatasetOptionsOf(recipe);
  options.files.assign(recipe.data().validation().begin(), recipe.data().validation().end());
  options.max_rows = 0;
  return options;
}

uint64_t DataSeedOf(const Recipe& recipe) {
  return static_cast<uint64_t>(recipe.data().has_seed() ? recipe.data().seed() : recipe.training().seed());
}

PackingOptions PackingOptionsOf(const Recipe& recipe) {
  const Data& from = recipe.data();
  PackingOptions options;
  if (from.packing() == Data::PACKING_UNPACKED) options.mode = PackingMode::kUnpacked;
  if (from.packing() == Data::PACKING_WINDOWS) options.mode = PackingMode::kWindows;
  options.too_long = TooLong::kDrop;
  if (from.too_long() == Data::TOO_LONG_CUT) options.too_long = TooLong::kCut;
  if (from.too_long() == Data::TOO_LONG_FAIL) options.too_long = TooLong::kFail;
  options.seq_len = from.seq_len();
  options.micro_batch_size = recipe.training().micro_batch_size();
  options.shuffle = from.shuffle();
  options.seed = DataSeedOf(recipe);
  options.separate_documents = from.separate_documents();
  if (from.validation_size() == 0) options.held_out_share = from.validation_share();
  return options;
}

LossOn LossOnOf(const Recipe& recipe) {
  return recipe.data().loss_on() == Data::LOSS_ON_ALL ? LossOn::kAll : LossOn::kResponses;
}

std::string ChatFormatNameOf(const Recipe& recipe) {
  switch (recipe.data().chat_format()) {
    case Data::CHAT_FORMAT_AUTO:
      return "auto";
    case Data::CHAT_FORMAT_CHATML:
      return "chatml";
    case Data::CHAT_FORMAT_LLAMA3:
      return "llama3";
    case Data::CHAT_FORMAT_MISTRAL:
      return "mistral";
    case Data::CHAT_FORMAT_ZEPHYR:
      return "zephyr";
    case Data::CHAT_FORMAT_ALPACA:
      return "alpaca";
    case Data::CHAT_FORMAT_PLAIN:
      return "plain";
  }
  return "auto";
}

namespace {

OptimizerKind OptimizerKindOf(Optimizer::Name name) {
  switch (name) {
    case Optimizer::NAME_ADAMW:
      return OptimizerKind::kAdamW;
    case Optimizer::NAME_ADAMW8BIT:
      return OptimizerKind::kAdamW8Bit;
    case Optimizer::NAME_LION:
      return OptimizerKind::kLion;
    case Optimizer::NAME_ADAFACTOR:
      return OptimizerKind::kAdafactor;
    case Optimizer::NAME_APOLLO:
      return OptimizerKind::kApollo;
  }
  return OptimizerKind::kAdamW;
}

// What is not given has the usual value of its optimiser.
OptimizerOptions OptimizerOptionsOf(const Recipe& recipe) {
  const Optimizer& from = recipe.optimizer();
  OptimizerOptions options;
  options.kind = OptimizerKindOf(from.name());
  if (options.kind == OptimizerKind::kLion) options.beta2 = 0.99;
  if (options.kind == OptimizerKind::kApollo) options.eps = 1e-6;
  if (from.has_beta1()) options.beta1 = from.beta1();
  if (from.has_beta2()) options.beta2 = from.beta2();
  if (from.has_eps()) options.eps = from.eps();
  options.weight_decay = from.weight_decay();
  options.decay_all = from.decay_on() == Optimizer::DECAY_ON_ALL;
  options.max_grad_norm = from.max_grad_norm();
  if (from.moment_rounding() == Optimizer::MOMENT_ROUNDING_BITSANDBYTES) {
    options.moment_rounding = MomentRounding::kGrid;
  }
  if (from.has_projection_rank()) options.projection_rank = from.projection_rank();
  if (from.has_projection_scale()) options.projection_scale = from.projection_scale();
  if (from.has_projection_steps()) options.projection_steps = from.projection_steps();
  options.seed = static_cast<uint64_t>(recipe.training().seed());
  options.in_backward = recipe.training().optimizer_in_backward();
  const recipe::Memory::OptimizerState state = recipe.memory().optimizer_state();
  if (state == recipe::Memory::OPTIMIZER_STATE_HOST) options.state_tier = StateTier::kHost;
  if (state == recipe::Memory::OPTIMIZER_STATE_DISK) options.state_tier = StateTier::kDisk;
  return options;
}

}  // namespace

EngineOptions EngineOptionsOf(const Recipe& recipe) {
  EngineOptions options;
  options.mlp_tile = recipe.memory().mlp_tile();
  options.sequence_tile = recipe.memory().sequence_tile();
  if (recipe.memory().idle_values() == recipe::Memory::IDLE_VALUES_HOST) options.idle_tier = Placement::kHost;
  if (recipe.memory().idle_values() == recipe::Memory::IDLE_VALUES_DISK) options.idle_tier = Placement::kDisk;
  options.spill_folder = recipe.memory().spill_folder();
  options.loss.label_smoothing = static_cast<float>(recipe.loss().label_smoothing());
  options.loss.z_loss = static_cast<float>(recipe.loss().z_loss());
  options.loss.filter_threshold = static_cast<float>(recipe.loss().filter_threshold());
  const recipe::Distillation& distillation = recipe.distillation();
  options.distillation.weight = static_cast<float>(distillation.weight());
  options.distillation.temperature = static_cast<float>(distillation.temperature());
  if (distillation.direction() == recipe::Distillation::DIRECTION_REVERSE) {
    options.distillation.direction = DivergenceDirection::kReverse;
  } else if (distillation.direction() == recipe::Distillation::DIRECTION_SYMMETRIC) {
    options.distillation.direction = DivergenceDirection::kSymmetric;
  }
  options.trains_unserved = recipe.qat().start_step() > 0;
  options.optimizer = OptimizerOptionsOf(recipe);
  return options;
}

namespace {

int64_t TotalStepsOf(const Recipe& recipe, int64_t steps_per_epoch) {
  if (recipe.training().has_steps()) return recipe.training().steps();
  const double epochs = recipe.training().has_epochs() ? recipe.training().epochs() : 1;
  return std::max<int64_t>(1, static_cast<int64_t>(std::ceil(epochs * static_cast<double>(steps_per_epoch))));
}

}  // namespace

TrainLoopOptions TrainLoopOptionsOf(const Recipe& recipe, int64_t steps_per_epoch) {
  const recipe::Training& from = recipe.training();
  TrainLoopOptions options;
  options.learning_rate = recipe.optimizer().learning_rate();
  options.accumulation = from.accumulation();
  options.serve_after = recipe.qat().start_step();
  options.eval_every = from.eval_every();
  options.eval_batches = from.eval_batches();
  options.save_every = from.save_every();
  options.keep_last = from.keep_last();
  options.keep_best = from.keep_best();
  options.early_stopping = from.early_stopping();

  const Schedule& schedule = recipe.schedule();
  ScheduleOptions& to = options.schedule;
  to.total_steps = TotalStepsOf(recipe, steps_per_epoch);
  to.kind = ScheduleKind::kCosine;
  if (schedule.type() == Schedule::TYPE_LINEAR) to.kind = ScheduleKind::kLinear;
  if (schedule.type() == Schedule::TYPE_CONSTANT) to.kind = ScheduleKind::kConstant;
  if (schedule.type() == Schedule::TYPE_WSD) to.kind = ScheduleKind::kWsd;
  if (schedule.type() == Schedule::TYPE_TWO_STAGE) to.kind = ScheduleKind::kTwoStage;
  to.second_peak = schedule.second_peak();
  const double ratio = schedule.has_warmup_ratio() ? schedule.warmup_ratio() : 0.03;
  const double steps = static_cast<double>(to.total_steps);
  to.warmup_steps =
      schedule.has_warmup_steps() ? schedule.warmup_steps() : static_cast<int64_t>(std::ceil(ratio * steps));
  to.decay_steps = static_cast<int64_t>(std::ceil(schedule.decay_share() * steps));
  to.min_ratio = schedule.min_lr_ratio();
  return options;
}

ExportOptions ExportOptionsOf(const Recipe& recipe) {
  const Export& from = recipe.output().export_();
  ExportOptions options;
  options.dtype = TensorDType::kBF16;
  if (from.dtype() == Export::DTYPE_F16) options.dtype = TensorDType::kF16;
  if (from.dtype() == Export::DTYPE_F32) options.dtype = TensorDType::kF32;
  options.max_shard_bytes = from.max_shard_size();
  options.max_kl = from.max_kl();
  options.min_agreement = from.min_agreement();
  return options;
}

}  // namespace thimble
