// How long a memory plan takes for large models: recording the tapes, and placing their values.
#include <benchmark/benchmark.h>

#include <string>
#include <vector>

#include "trainer/engine.h"
#include "trainer/weight_loader.h"

namespace thimble {
namespace {

DecoderConfig Shape(int64_t hidden, int64_t layers, int64_t heads, int64_t kv_heads, int64_t intermediate) {
  DecoderConfig config;
  config.hidden_dim = hidden;
  config.num_layers = layers;
  config.num_heads = heads;
  config.num_kv_heads = kv_heads;
  config.head_dim = hidden / heads;
  config.intermediate_dim = intermediate;
  config.vocab_size = 128256;
  config.max_position = 131072;
  config.windows.assign(layers, 0);
  return config;
}

// The LLaMA 3.1 models by layers.
DecoderConfig Llama(int64_t layers) {
  if (layers == 32) return Shape(4096, 32, 32, 8, 14336);
  if (layers == 80) return Shape(8192, 80, 64, 8, 28672);
  return Shape(16384, layers, 128, 8, 53248);
}

struct Model {
  Store store;
  Decoder decoder;
  EngineOptions options;
};

void MakeModel(const benchmark::State& state, Model* model) {
  AdapterOptions adapter;
  adapter.rank = 32;
  adapter.targets = LinearNames();
  QuantizationOptions quantization;
  quantization.format = Format::kNF4;
  model->decoder = *DeclareDecoder(Llama(state.range(0)), adapter, false, Compute::kF32,
                                   StorageForShape(Format::kBF16, quantization), &model->store);
  DeclareOptimizerState(model->options.optimizer, &model->store);
  model->options.activations = state.range(1) != 0 ? SavePolicy::kRecompute : SavePolicy::kKeep;
  model->options.max_tokens = 4096;
}

// Arguments: layers, recompute.
void Declare(benchmark::State& state) {
  for (auto _ : state) {
    Model model;
    MakeModel(state, &model);
    benchmark::DoNotOptimize(model.decoder.head);
  }
}

void PlanEngine(benchmark::State& state) {
  Model model;
  MakeModel(state, &model);
  int64_t steps = 0;
  double ratio = 0;
  for (auto _ : state) {
    const Engine engine(&model.decoder, &model.store, model.options);
    steps = static_cast<int64_t>(engine.largest().tape.steps().size());
    ratio = static_cast<double>(engine.arena_bytes()) / static_cast<double>(engine.arena_lower_bound_bytes());
  }
  state.counters["steps"] = static_cast<double>(steps);
  state.counters["of_lower_bound"] = ratio;
}

void PlaceOnly(benchmark::State& state) {
  Model model;
  MakeModel(state, &model);
  const Engine engine(&model.decoder, &model.store, model.options);
  for (auto _ : state) {
    benchmark::DoNotOptimize(PlanMemory(engine.largest().tape, engine.largest().losses).peak_bytes);
  }
}

// 1,000 layers is a tape of about 100,000 steps.
const std::vector<std::vector<int64_t>> kArguments = {{32, 80, 126, 1000}, {0, 1}};
BENCHMARK(Declare)->ArgsProduct({{126}, {1}})->Unit(benchmark::kMillisecond);
BENCHMARK(PlanEngine)->ArgsProduct(kArguments)->Unit(benchmark::kMillisecond);
BENCHMARK(PlaceOnly)->ArgsProduct(kArguments)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace thimble

BENCHMARK_MAIN();
