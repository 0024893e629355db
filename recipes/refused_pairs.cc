// The table of refused pairs.
#include "recipes/refused_pairs.h"

#include "absl/strings/str_cat.h"
#include "recipes/recipe_options.h"
#include "recipes/recipe_reader.h"
#include "recipes/schema.h"
#include "recipes/served_options.h"

namespace thimble {
namespace {

using recipe::Adapter;
using recipe::DecoderShape;
using recipe::Export;
using recipe::Memory;
using recipe::Optimizer;
using recipe::Quantization;

struct RefusedPair {
  const char* first;
  const char* second;
  const char* reason;
  bool (*applies)(const Recipe& recipe);
};

bool HasAdapter(const Recipe& r) { return r.adapter().type() != Adapter::TYPE_NONE; }
bool IsQuantized(const Recipe& r) { return r.quantization().format() != Quantization::FORMAT_NONE; }
bool NamesItsGroups(const Recipe& r) { return r.quantization().format() >= Quantization::FORMAT_INT8; }
bool IsAdafactor(const Recipe& r) { return r.optimizer().name() == Optimizer::NAME_ADAFACTOR; }
bool IsApollo(const Recipe& r) { return r.optimizer().name() == Optimizer::NAME_APOLLO; }
bool HasValidation(const Recipe& r) { return r.data().validation_size() > 0 || r.data().validation_share() > 0; }

constexpr RefusedPair kRefusedPairs[] = {
    {"model.path", "model.config", "the folder's config.json already says the shape: give one of them",
     [](const Recipe& r) { return r.model().has_path() && r.model().has_config(); }},
    {"model.path", "model.config", "give the folder of a base, or the shape of a model to train from scratch",
     [](const Recipe& r) { return !r.model().has_path() && !r.model().has_config(); }},
    {"model.config", "model.tokenizer", "a model from scratch needs a tokenizer: give its tokenizer.json",
     [](const Recipe& r) { return r.model().has_config() && !r.model().has_tokenizer(); }},
    {"model.config", "quantization.format",
     "fresh weights must train, and quantised weights cannot: set format to none",
     [](const Recipe& r) { return r.model().has_config() && IsQuantized(r); }},
    {"model.config", "adapter.type", "fresh weights must train themselves: set adapter.type to none",
     [](const Recipe& r) { return r.model().has_config() && HasAdapter(r); }},
    {"model.config.ternary", "model.config.architecture", "only bitnet has ternary layers: set architecture to bitnet",
     [](const Recipe& r) {
       const DecoderShape& shape = r.model().config();
       return shape.has_ternary() && shape.architecture() != DecoderShape::ARCHITECTURE_BITNET;
     }},
    {"model.config.activation", "model.config.architecture", "only bitnet has another gate than silu: set architecture",
     [](const Recipe& r) {
       const DecoderShape& shape = r.model().config();
       return shape.activation() != DecoderShape::ACTIVATION_SILU &&
              shape.architecture() != DecoderShape::ARCHITECTURE_BITNET;
     }},
    {"model.config.num_heads", "model.config.num_kv_heads", "num_kv_heads must divide num_heads",
     [](const Recipe& r) {
       const DecoderShape& shape = r.model().config();
       return shape.has_num_kv_heads() && shape.num_heads() % shape.num_kv_heads() != 0;
     }},
    {"model.config.hidden_dim", "model.config.num_heads", "num_heads must divide hidden_dim, or give head_dim",
     [](const Recipe& r) {
       const DecoderShape& shape = r.model().config();
       return r.model().has_config() && !shape.has_head_dim() && shape.hidden_dim() % shape.num_heads() != 0;
     }},
    {"model.config.hidden_dim", "model.config.head_dim", "the width of a head must be even, for rotary positions",
     [](const Recipe& r) {
       const DecoderShape& shape = r.model().config();
       if (!r.model().has_config()) return false;
       return (shape.has_head_dim() ? shape.head_dim() : shape.hidden_dim() / shape.num_heads()) % 2 != 0;
     }},
    {"quantization.block_size", "quantization.format", "block_size must be a power of two",
     [](const Recipe& r) {
       const int64_t size = r.quantization().block_size();
       return IsQuantized(r) && (size & (size - 1)) != 0;
     }},
    {"quantization.block_size", "quantization.format", "only nf4 and fp4 take a block_size: leave it out",
     [](const Recipe& r) { return NamesItsGroups(r) && r.quantization().block_size() != 64; }},
    {"quantization.double_quant", "quantization.format", "only nf4 and fp4 have it: leave it out",
     [](const Recipe& r) { return NamesItsGroups(r) && !r.quantization().double_quant(); }},
    {"adapter.type", "trainable.weights",
     "an adapter stands beside frozen weights: set adapter.type to none to train all",
     [](const Recipe& r) { return HasAdapter(r) && TrainsAllWeights(r); }},
    {"trainable.weights", "adapter.type", "there is no adapter to train: set adapter.type to lora or dora",
     [](const Recipe& r) { return !HasAdapter(r) && !TrainsAllWeights(r); }},
    {"trainable.embeddings", "adapter.type",
     "beside an adapter embedding and output layer stay frozen: set it to false",
     [](const Recipe& r) { return HasAdapter(r) && r.trainable().embeddings(); }},
    {"trainable.embeddings", "model.config", "the fresh embedding of a model from scratch must train: set it to true",
     [](const Recipe& r) { return r.model().has_config() && !TrainsEmbeddings(r); }},
    {"quantization.format", "adapter.type",
     "quantised weights are frozen: set adapter.type to lora or dora, or format to none",
     [](const Recipe& r) { return IsQuantized(r) && !HasAdapter(r); }},
    {"optimizer.moment_rounding", "optimizer.name", "only 8-bit moments are rounded: set name to adamw8bit",
     [](const Recipe& r) {
       return r.optimizer().moment_rounding() != Optimizer::MOMENT_ROUNDING_NEAREST &&
              r.optimizer().name() != Optimizer::NAME_ADAMW8BIT;
     }},
    {"optimizer.beta1", "optimizer.name", "adafactor keeps no mean of gradients: leave it out",
     [](const Recipe& r) { return IsAdafactor(r) && r.optimizer().has_beta1(); }},
    {"optimizer.beta2", "optimizer.name", "adafactor's decay follows from the step, 1 - step^-0.8: leave it out",
     [](const Recipe& r) { return IsAdafactor(r) && r.optimizer().has_beta2(); }},
    {"optimizer.eps", "optimizer.name", "adafactor and lion divide by nothing that needs it: leave it out",
     [](const Recipe& r) {
       return (IsAdafactor(r) || r.optimizer().name() == Optimizer::NAME_LION) && r.optimizer().has_eps();
     }},
    {"optimizer.projection_rank", "optimizer.name", "only apollo projects gradients: set name to apollo",
     [](const Recipe& r) { return !IsApollo(r) && r.optimizer().has_projection_rank(); }},
    {"optimizer.projection_scale", "optimizer.name", "only apollo projects gradients: set name to apollo",
     [](const Recipe& r) { return !IsApollo(r) && r.optimizer().has_projection_scale(); }},
    {"optimizer.projection_steps", "optimizer.name", "only apollo projects gradients: set name to apollo",
     [](const Recipe& r) { return !IsApollo(r) && r.optimizer().has_projection_steps(); }},
    {"optimizer.name", "adapter.type",
     "apollo is for whole weight matrices, an adapter's are small already: set name to adamw or adamw8bit",
     [](const Recipe& r) { return IsApollo(r) && HasAdapter(r); }},
    {"data.seq_len", "memory.device_budget", "auto is the longest that fits: give a budget",
     [](const Recipe& r) { return r.data().seq_len() == kAutoSize && !r.memory().has_device_budget(); }},
    {"training.micro_batch_size", "memory.device_budget", "auto is what fits: give a budget",
     [](const Recipe& r) { return r.training().micro_batch_size() == kAutoSize && !r.memory().has_device_budget(); }},
    {"training.micro_batch_size", "training.optimizer_in_backward",
     "auto takes its micro-batches out of training.accumulation, which is 1: give a number",
     [](const Recipe& r) {
       return r.training().micro_batch_size() == kAutoSize && r.training().optimizer_in_backward();
     }},
    {"data.validation", "data.validation_share", "give held-out files or a share of the training rows",
     [](const Recipe& r) { return r.data().validation_size() > 0 && r.data().validation_share() > 0; }},
    {"schedule.warmup_steps", "schedule.warmup_ratio", "give one of them",
     [](const Recipe& r) { return r.schedule().has_warmup_steps() && r.schedule().has_warmup_ratio(); }},
    {"training.epochs", "training.steps", "give one of them",
     [](const Recipe& r) { return r.training().has_epochs() && r.training().has_steps(); }},
    {"schedule.warmup_steps", "training.steps", "the warm-up must be shorter than the run",
     [](const Recipe& r) {
       return r.training().has_steps() && r.schedule().has_warmup_steps() &&
              r.schedule().warmup_steps() >= r.training().steps() && r.schedule().warmup_steps() > 0;
     }},
    {"training.early_stopping", "data.validation", "stopping early needs held-out rows: give data.validation",
     [](const Recipe& r) { return r.training().early_stopping() > 0 && !HasValidation(r); }},
    {"training.early_stopping", "training.eval_every", "stopping early needs evaluations: give training.eval_every",
     [](const Recipe& r) { return r.training().early_stopping() > 0 && r.training().eval_every() == 0; }},
    {"loss.filter_threshold", "loss.label_smoothing",
     "smoothing gives every token a gradient, so nothing can be skipped",
     [](const Recipe& r) { return r.loss().filter_threshold() > 0 && r.loss().label_smoothing() > 0; }},
    {"distillation.teacher", "loss.label_smoothing", "the teacher's targets are soft already: set it to 0",
     [](const Recipe& r) { return r.has_distillation() && r.loss().label_smoothing() > 0; }},
    {"distillation.teacher", "loss.z_loss", "the loss of distillation has no such term: set it to 0",
     [](const Recipe& r) { return r.has_distillation() && r.loss().z_loss() > 0; }},
    {"distillation.teacher", "loss.filter_threshold",
     "a teacher gives every token a gradient, so nothing can be skipped: set it to 0",
     [](const Recipe& r) { return r.has_distillation() && r.loss().filter_threshold() > 0; }},
    {"qat.format", "adapter.type", "an adapter that is merged before every step knows no magnitudes: set type to lora",
     [](const Recipe& r) { return r.has_qat() && r.adapter().type() == Adapter::TYPE_DORA; }},
    {"qat.format", "adapter.dropout", "an adapter that is merged before every step has no input to drop: set it to 0",
     [](const Recipe& r) { return r.has_qat() && HasAdapter(r) && r.adapter().dropout() > 0; }},
    {"qat.format", "output.export.format", "an adapter alone is merged and quantised by whoever serves it: export gguf",
     [](const Recipe& r) { return r.has_qat() && r.output().export_().format() == Export::FORMAT_PEFT; }},
    {"qat.format", "output.export.format",
     "the run trains for another format: export that one (gguf for q8_0 to nvfp4)",
     [](const Recipe& r) {
       const Export::Format format = r.output().export_().format();
       const bool quantises = WeightFormatNamed(Export::Format_Name(format)).has_value();
       if (!r.has_qat() || (format != Export::FORMAT_GGUF && !quantises)) return false;
       const bool gguf = QatMix(r) != nullptr;
       return quantises ? gguf || Export::Format_Name(format) != recipe::Qat::Format_Name(r.qat().format()) : !gguf;
     }},
    {"qat.format", "output.export.gguf_type", "the run trains for another type: leave gguf_type out",
     [](const Recipe& r) {
       const GgufMix *trained = QatMix(r), *exported = ExportedMix(r);
       return r.has_qat() && trained != nullptr && r.output().export_().has_gguf_type() && exported != nullptr &&
              trained->type != exported->type;
     }},
    {"qat.start_step", "training.steps", "no step would be left to train for the format: set it lower",
     [](const Recipe& r) {
       return r.has_qat() && r.training().steps() > 0 && r.qat().start_step() >= r.training().steps();
     }},
    {"qat.tensors", "qat.format", "only GGUF files mix types: leave tensors out, or take a format of GGUF",
     [](const Recipe& r) { return r.has_qat() && r.qat().tensors_size() > 0 && QatMix(r) == nullptr; }},
    {"output.export.gguf_type", "output.export.format", "only a GGUF file has such a type: set format to gguf",
     [](const Recipe& r) {
       return r.output().export_().has_gguf_type() && r.output().export_().format() != Export::FORMAT_GGUF;
     }},
    {"distillation.weights", "memory.weights", "both stream from one tier: give the same, or device for one of them",
     [](const Recipe& r) {
       const auto apart = [&r](Memory::Weights other) {
         return other != Memory::WEIGHTS_DEVICE && other != r.distillation().weights();
       };
       return r.distillation().has_weights() && r.distillation().weights() != Memory::WEIGHTS_DEVICE &&
              (apart(r.memory().weights()) || (r.memory().has_embeddings() && apart(r.memory().embeddings())));
     }},
    {"memory.activations", "memory.boundaries", "auto chooses for the results of layers as well: leave boundaries out",
     [](const Recipe& r) {
       return r.memory().activations() == Memory::ACTIVATIONS_AUTO &&
              (r.memory().has_boundaries() || r.memory().boundary_span() > 1);
     }},
    {"memory.boundaries", "memory.activations", "auto chooses for all saved values: set memory.activations to auto",
     [](const Recipe& r) { return r.memory().boundaries() == Memory::ACTIVATIONS_AUTO; }},
    {"memory.activations", "memory.attention", "auto chooses for the results of attention as well: leave attention out",
     [](const Recipe& r) {
       return r.memory().activations() == Memory::ACTIVATIONS_AUTO && r.memory().has_attention();
     }},
    {"memory.attention", "memory.activations", "auto chooses for all saved values: set memory.activations to auto",
     [](const Recipe& r) { return r.memory().attention() == Memory::ACTIVATIONS_AUTO; }},
    {"memory.activations", "memory.elementwise",
     "auto chooses for the results of norms and gates as well: leave elementwise out",
     [](const Recipe& r) {
       return r.memory().activations() == Memory::ACTIVATIONS_AUTO && r.memory().has_elementwise();
     }},
    {"memory.elementwise", "memory.activations", "auto chooses for all saved values: set memory.activations to auto",
     [](const Recipe& r) { return r.memory().elementwise() == Memory::ACTIVATIONS_AUTO; }},
    {"memory.activations", "memory.layers", "auto chooses layer by layer: leave layers out",
     [](const Recipe& r) {
       return r.memory().activations() == Memory::ACTIVATIONS_AUTO && r.memory().layers_size() > 0;
     }},
    {"memory.mlp_tile", "memory.activations", "a tile must be a multiple of 256 tokens",
     [](const Recipe& r) { return r.memory().mlp_tile() % 256 != 0; }},
    {"memory.embeddings", "memory.weights", "both stream from one tier: give the same, or device for one of them",
     [](const Recipe& r) {
       return r.memory().has_embeddings() && r.memory().embeddings() != Memory::WEIGHTS_DEVICE &&
              r.memory().weights() != Memory::WEIGHTS_DEVICE && r.memory().embeddings() != r.memory().weights();
     }},
    {"memory.sequence_tile", "memory.activations", "a tile must be a multiple of 256 tokens",
     [](const Recipe& r) { return r.memory().sequence_tile() % 256 != 0; }},
    {"memory.sequence_tile", "adapter.type",
     "dora takes a pass over the weights for every tile: set memory.sequence_tile to 0 or adapter.type to lora",
     [](const Recipe& r) { return r.memory().sequence_tile() > 0 && r.adapter().type() == Adapter::TYPE_DORA; }},
    {"memory.mlp_tile", "adapter.type",
     "dora takes a pass over the weights for every tile: set memory.mlp_tile to 0 or adapter.type to lora",
     [](const Recipe& r) { return r.memory().mlp_tile() > 0 && r.adapter().type() == Adapter::TYPE_DORA; }},
    {"training.optimizer_in_backward", "training.accumulation",
     "gradients that are used at once cannot be summed over micro-batches: set accumulation to 1 and raise "
     "training.micro_batch_size",
     [](const Recipe& r) { return r.training().optimizer_in_backward() && r.training().accumulation() > 1; }},
    {"training.optimizer_in_backward", "optimizer.max_grad_norm",
     "the norm of all gradients is known only after the last update, so they cannot be clipped to it: set "
     "max_grad_norm "
     "to 0",
     [](const Recipe& r) { return r.training().optimizer_in_backward() && r.optimizer().max_grad_norm() > 0; }},
    {"output.export.format", "adapter.type",
     "peft exports an adapter and there is none: set output.export.format to merged",
     [](const Recipe& r) { return r.output().export_().format() == Export::FORMAT_PEFT && !HasAdapter(r); }},
};

// "my.yaml:3: adapter.type and quantization.format (my.yaml:7)", led by the first place that is known.
std::string Named(const RefusedPair& pair, const std::string& first_place, const std::string& second_place) {
  std::string text = first_place.empty() ? "" : absl::StrCat(first_place, ": ");
  absl::StrAppend(&text, pair.first, " and ", pair.second);
  if (!second_place.empty()) absl::StrAppend(&text, " (", second_place, ")");
  return text;
}

}  // namespace

absl::Status CheckRefusedPairs(const Recipe& recipe, const std::function<std::string(const std::string& key)>& place) {
  for (const RefusedPair& pair : kRefusedPairs) {
    if (!pair.applies(recipe)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(Named(pair, place(pair.first), place(pair.second)), ": ", pair.reason));
  }
  return absl::OkStatus();
}

}  // namespace thimble
