// Text to token ids and back, as described by a Hugging Face tokenizer.json with a BPE model (byte-level or
// SentencePiece-style): normalise, split, merge, add special tokens; decode whole or as tokens arrive.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace thimble {

struct TokenizerParts;
class StreamDecoderState;

// Immutable after loading; every method may be called from several threads at once.
// Text that is not valid UTF-8 gets one U+FFFD for each maximal bad part. A text may have up to 2 GiB - 1 byte.
class Tokenizer {
 public:
  struct Encoding {
    std::vector<int32_t> ids;
    // Token i came from bytes [begin[i], end[i]) of the original text. Exact where normalisation leaves the text as it
    // is; where it rewrites a stretch, a token cut from that stretch gets the whole stretch. Inserted text and tokens
    // of the post-processor have begin == end. Both sequences never decrease.
    std::vector<int64_t> begin;
    std::vector<int64_t> end;
  };

  // Reads a tokenizer.json, or the one in the folder `path`, or that of a GGUF file. Malformed or unsupported content
  // is one InvalidArgument that names the file and the place in it.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& path);
  // The same from the content of a tokenizer.json; `name` stands for the file in error messages.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromJson(std::string_view json, const std::string& name);

  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Added tokens are recognised in the text in any case; `add_special_tokens` adds those of the post-processor.
  std::vector<int32_t> Encode(std::string_view text, bool add_special_tokens) const;
  Encoding EncodeWithOffsets(std::string_view text, bool add_special_tokens) const;

  // Always valid UTF-8. Ids that do not exist are left out.
  std::string Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const;

  int64_t vocab_size() const;  // largest id + 1, added tokens included
  std::optional<int32_t> TokenId(std::string_view token) const;
  std::string_view TokenText(int32_t id) const;  // as written in the file; empty when there is no such id
  bool IsSpecial(int32_t id) const;
  // What the file says and loading did not follow, one sentence each (an id that is not the one in use, truncation).
  const std::vector<std::string>& warnings() const;

 private:
  friend class StreamDecoder;
  struct Scratch;
  class ScratchLease;
  explicit Tokenizer(std::unique_ptr<TokenizerParts> parts);
  void EncodeInto(std::string_view text, bool add_special_tokens, Scratch& scratch, Encoding& out, bool offsets) const;

  struct ScratchPool;
  std::unique_ptr<const TokenizerParts> parts_;
  std::unique_ptr<ScratchPool> pool_;
};

// Decodes tokens as they arrive. What all Push calls and Finish return, joined, is Decode of all ids; a UTF-8 sequence
// or a run of byte tokens is held back until it is complete. The tokenizer must outlive the decoder.
class StreamDecoder {
 public:
  StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens);
  ~StreamDecoder();
  StreamDecoder(StreamDecoder&&) noexcept;

  std::string Push(int32_t id);
  std::string Finish();  // what is still held back; the decoder then starts anew

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  std::unique_ptr<StreamDecoderState> state_;
};

}  // namespace thimble
