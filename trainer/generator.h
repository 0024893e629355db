// Text generation with a key/value cache: greedy or sampled, one sequence at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "ops/scratch_buffer.h"
#include "trainer/decoder.h"
#include "trainer/executor.h"
#include "trainer/memory_plan.h"
#include "trainer/record_decoder.h"

namespace thimble {

struct GenerateOptions {
  int64_t max_new_tokens = 128;
  double temperature = 0;  // 0: greedy (the lowest id on ties)
  int64_t top_k = 0;       // 0: all
  double top_p = 1;
  uint64_t seed = 0;
  std::vector<int32_t> stop_tokens;  // generation ends at one of these, which is not returned
};

struct Generated {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;  // of each token under the model, at temperature 1
  bool stopped = false;         // at a stop token; false: max_new_tokens or the cache's end
};

class Generator {
 public:
  // Declares the caches in `store`, two entries [max_context, kv_dim] a layer, so that a plan counts them.
  static void DeclareCaches(const Decoder& decoder, int64_t max_context, Store* store);
  // Bytes of arena, logits and scratch, beyond the caches.
  static int64_t WorkspaceBytes(const Decoder& decoder, Store* store);

  // Declares the caches unless that is done, and allocates them.
  Generator(const Decoder* decoder, Store* store, int64_t max_context);

  // `on_token` (may be empty) is called as each token comes. The prompt is not empty and shorter than max_context.
  Generated Generate(absl::Span<const int32_t> prompt, const GenerateOptions& options,
                     const std::function<void(int32_t)>& on_token);

  // What of WorkspaceBytes() was touched so far.
  int64_t HeldBytes() const;
  int64_t max_context() const { return max_context_; }
  // The first failure to fetch a streamed weight; what was generated since is not to be used.
  const absl::Status& status() const { return status_; }

 private:
  struct Chunk {
    std::unique_ptr<Tape> tape;
    TierPlans plan;
    DecoderInputs inputs;
    ValueId hidden = kNoValue;
    std::unique_ptr<Executor> executor;
  };
  static int64_t ArenaBytes(const Decoder& decoder, Store* store);
  static void RecordChunk(const Decoder& decoder, Store* store, int64_t tokens, Chunk* chunk);
  // The step that quantises served weights; records nothing where there are none.
  static void RecordQuantize(const Decoder& decoder, Store* store, Chunk* chunk);
  void UpdateServed();
  Chunk& Get(int64_t tokens);
  // Appends tokens to the caches; logits_ are those after the last of them.
  void Feed(absl::Span<const int32_t> tokens);
  int32_t Choose(const GenerateOptions& options, uint64_t index, float* logprob);

  const Decoder* decoder_;
  Store* store_;
  int64_t max_context_;
  std::unique_ptr<Arena> arena_;
  std::map<int64_t, Chunk> chunks_;
  Chunk quantize_;
  int64_t past_ = 0;
  absl::Status status_;
  std::vector<float> logits_;
  ScratchBuffer scratch_;
  std::vector<char> fetched_;  // rows of a streamed head
};

}  // namespace thimble
