#include "trainer/generator.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "ops/check.h"
#include "ops/head_rows.h"
#include "ops/random.h"
#include "trainer/served_weights.h"
#include "trainer/transfers.h"

namespace thimble {
namespace {

constexpr int64_t kLargestChunk = 64;

constexpr int64_t kHeadTile = 256;  // rows of a head that is read from the weight tier

std::string CacheName(const char* kind, int64_t layer) { return absl::StrCat("cache.", kind, ".", layer); }

int64_t FetchedHeadBytes(const Decoder& decoder, const Store& store) {
  const StoreEntry& head = store.entry(decoder.EvaluatedHead());
  return HeadRows::BufferBytes(kHeadTile, HeadRows::FetchedRowBytes(head.view));
}

}  // namespace

void Generator::DeclareCaches(const Decoder& decoder, int64_t max_context, Store* store) {
  const DecoderConfig& c = decoder.config;
  for (int64_t i = 0; i < c.num_layers; ++i) {
    for (const char* kind : {"keys", "values"}) {
      store->Add(CacheName(kind, i), max_context, c.num_kv_heads * c.head_dim, Category::kCache);
    }
  }
}

namespace {

// Of the logits of one token.
int64_t HeadScratchBytes(const Decoder& decoder) {
  return MatMulScratchBytes(decoder.compute, 1, decoder.config.hidden_dim, decoder.config.vocab_size);
}

}  // namespace

Generator::Generator(const Decoder* decoder, Store* store, int64_t max_context)
    : decoder_(decoder), store_(store), max_context_(max_context) {
  if (store_->Find(CacheName("keys", 0)) < 0) DeclareCaches(*decoder_, max_context, store_);
  store_->Allocate();
  max_context_ = store_->entry(store_->Find(CacheName("keys", 0))).rows;
  arena_ = std::make_unique<Arena>(ArenaBytes(*decoder_, store_));
  logits_.resize(decoder_->config.vocab_size);
  scratch_.Reserve(HeadScratchBytes(*decoder_));
  fetched_.resize(FetchedHeadBytes(*decoder_, *store_));
}

int64_t Generator::WorkspaceBytes(const Decoder& decoder, Store* store) {
  return ArenaBytes(decoder, store) + decoder.config.vocab_size * int64_t{sizeof(float)} + HeadScratchBytes(decoder) +
         FetchedHeadBytes(decoder, *store);
}

// Smaller chunks have smaller buffers in the same order, but their placement may come out larger.
int64_t Generator::ArenaBytes(const Decoder& decoder, Store* store) {
  Chunk quantize;
  RecordQuantize(decoder, store, &quantize);
  int64_t bytes = quantize.plan.device.peak_bytes;
  for (int64_t tokens = kLargestChunk; tokens > 0; tokens /= 2) {
    Chunk chunk;
    RecordChunk(decoder, store, tokens, &chunk);
    bytes = std::max(bytes, chunk.plan.device.peak_bytes);
  }
  return bytes;
}

int64_t Generator::HeldBytes() const {
  return arena_->high_water_bytes() + static_cast<int64_t>(logits_.size() * sizeof(float) + fetched_.size()) +
         scratch_.bytes();
}

void Generator::RecordChunk(const Decoder& decoder, Store* store, int64_t tokens, Chunk* chunk) {
  RecordOptions options;
  for (int64_t i = 0; i < decoder.config.num_layers; ++i) {
    options.caches.push_back(store->Find(CacheName("keys", i)));
    options.caches.push_back(store->Find(CacheName("values", i)));
  }
  chunk->tape = std::make_unique<Tape>(store);
  chunk->inputs = RecordInputs(chunk->tape.get(), tokens);
  chunk->hidden = RecordFinalNorm(chunk->tape.get(), decoder,
                                  RecordLayers(chunk->tape.get(), decoder, chunk->inputs, options).front());
  FetchStreamedWeights(chunk->tape.get());
  chunk->plan = PlanTiers(*chunk->tape, {chunk->hidden});
}

void Generator::RecordQuantize(const Decoder& decoder, Store* store, Chunk* chunk) {
  chunk->tape = std::make_unique<Tape>(store);
  RecordQuantizeServed(decoder, chunk->tape.get());
  FetchStreamedWeights(chunk->tape.get());
  chunk->plan = PlanTiers(*chunk->tape, {});
}

void Generator::UpdateServed() {
  if (!HasServed(*decoder_) || !store_->served_is_old()) return;
  BindServed(*decoder_, store_);
  if (quantize_.executor == nullptr) {
    RecordQuantize(*decoder_, store_, &quantize_);
    quantize_.executor = std::make_unique<Executor>(quantize_.tape.get(), &quantize_.plan, Tiers{arena_.get()});
  }
  RunScalars scalars;
  if (status_.ok()) status_ = quantize_.executor->Run(&scalars);
  store_->SetServedIsOld(false);
}

Generator::Chunk& Generator::Get(int64_t tokens) {
  Chunk& chunk = chunks_[tokens];
  if (chunk.tape != nullptr) return chunk;
  RecordChunk(*decoder_, store_, tokens, &chunk);
  return chunk;
}

void Generator::Feed(absl::Span<const int32_t> tokens) {
  CHECK_LE(past_ + static_cast<int64_t>(tokens.size()), max_context_);
  // Chunks of 64, then powers of two: few tapes, and no row is padding.
  while (!tokens.empty()) {
    int64_t count = kLargestChunk;
    while (count > static_cast<int64_t>(tokens.size())) count /= 2;
    Chunk& chunk = Get(count);
    std::vector<int32_t> positions(count);
    std::iota(positions.begin(), positions.end(), static_cast<int32_t>(past_));
    const std::vector<int32_t> starts(count, 0);
    const std::vector<int32_t> targets(count, -100);
    if (chunk.executor == nullptr) {
      chunk.executor = std::make_unique<Executor>(chunk.tape.get(), &chunk.plan, Tiers{arena_.get()});
    }
    chunk.executor->Bind(chunk.inputs.ids, tokens.data());
    chunk.executor->Bind(chunk.inputs.positions, positions.data());
    chunk.executor->Bind(chunk.inputs.starts, starts.data());
    chunk.executor->Bind(chunk.inputs.targets, targets.data());
    RunScalars scalars;
    scalars.past_tokens = past_;
    if (status_.ok()) status_ = chunk.executor->Run(&scalars);
    past_ += count;
    tokens.remove_prefix(count);
    if (!tokens.empty()) continue;
    const ConstMatrix last = chunk.executor->Result(chunk.hidden).Rows(count - 1, 1);
    const int64_t vocab = decoder_->config.vocab_size;
    HeadRows head(store_->entry(decoder_->EvaluatedHead()).view, kHeadTile, fetched_.data());
    for (int64_t begin = 0; begin < vocab;) {
      const WeightView rows = head.At(begin).rows;
      MatMulNT(last, rows, Matrix(logits_.data() + begin, 1, rows.rows), {.compute = decoder_->compute},
               scratch_.view());
      begin += rows.rows;
    }
    if (status_.ok() && store_->weight_tier() != nullptr) status_ = store_->weight_tier()->status();
  }
}

int32_t Generator::Choose(const GenerateOptions& options, uint64_t index, float* logprob) {
  const auto best = std::max_element(logits_.begin(), logits_.end());
  const double top = *best;
  double sum = 0;
  for (float z : logits_) sum += std::exp(z - top);
  const double lse = top + std::log(sum);
  int32_t token = static_cast<int32_t>(best - logits_.begin());
  if (options.temperature > 0) {
    std::vector<int32_t> order(logits_.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [this](int32_t a, int32_t b) { return logits_[a] > logits_[b]; });
    if (options.top_k > 0 && options.top_k < static_cast<int64_t>(order.size())) order.resize(options.top_k);
    std::vector<double> weights;
    weights.reserve(order.size());
    for (int32_t id : order) weights.push_back(std::exp((logits_[id] - top) / options.temperature));
    const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
    // The smallest set of likeliest tokens that holds top_p of the probability.
    size_t kept = 0;
    double mass = 0;
    while (kept < weights.size() && (kept == 0 || mass < options.top_p * total)) mass += weights[kept++];
    float uniform = 0;
    RandomUniform(options.seed, /*stream=*/0, index, 0, 1, Vector(&uniform, 1));
    double left = uniform * mass;
    token = order[kept - 1];
    for (size_t i = 0; i < kept; ++i) {
      left -= weights[i];
      if (left < 0) {
        token = order[i];
        break;
      }
    }
  }
  *logprob = static_cast<float>(logits_[token] - lse);
  return token;
}

Generated Generator::Generate(absl::Span<const int32_t> prompt, const GenerateOptions& options,
                              const std::function<void(int32_t)>& on_token) {
  CHECK(!prompt.empty() && static_cast<int64_t>(prompt.size()) < max_context_);
  past_ = 0;
  UpdateServed();
  Feed(prompt);
  Generated result;
  while (static_cast<int64_t>(result.tokens.size()) < options.max_new_tokens) {
    if (!std::all_of(logits_.begin(), logits_.end(), [](float z) { return std::isfinite(z); })) {
      if (status_.ok()) {
        status_ = absl::InternalError(absl::StrCat("the logits after ", prompt.size() + result.tokens.size(),
                                                   " tokens are not finite: the model is damaged, or its training "
                                                   "diverged"));
      }
      break;
    }
    float logprob = 0;
    const int32_t token = Choose(options, result.tokens.size(), &logprob);
    if (std::count(options.stop_tokens.begin(), options.stop_tokens.end(), token) > 0) {
      result.stopped = true;
      break;
    }
    result.tokens.push_back(token);
    result.logprobs.push_back(logprob);
    if (on_token) on_token(token);
    if (past_ == max_context_) break;
    if (static_cast<int64_t>(result.tokens.size()) < options.max_new_tokens) {
      Feed(absl::MakeConstSpan(&result.tokens.back(), 1));
    }
  }
  return result;
}

}  // namespace thimble
