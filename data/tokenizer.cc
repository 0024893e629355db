// The tokenizer's pipeline: repair UTF-8, cut at added tokens, normalise, cut again, pre-tokenise, merge, add specials.
#include "data/tokenizer.h"

#include <filesystem>
#include <mutex>

#include "data/file.h"
#include "data/gguf_tokenizer.h"
#include "data/tokenizer_parts.h"
#include "data/unicode.h"
#include "ops/check.h"

namespace thimble {

struct Tokenizer::Scratch {
  BpeScratch bpe;
  std::vector<BpeToken> tokens;
  std::vector<ByteSpan> words;
  std::vector<AddedTokenMatcher::Part> raw_parts, normalized_parts;
  RewriteSpace repaired, normalized, pre_tokenized;
};

// Idle working memories; a call takes one, so that caches outlive calls and no two threads share one.
struct Tokenizer::ScratchPool {
  std::mutex mutex;
  std::vector<std::unique_ptr<Scratch>> idle;
};

class Tokenizer::ScratchLease {
 public:
  explicit ScratchLease(ScratchPool& pool) : pool_(pool) {
    const std::lock_guard<std::mutex> lock(pool.mutex);
    if (pool.idle.empty()) {
      scratch_ = std::make_unique<Scratch>();
    } else {
      scratch_ = std::move(pool.idle.back());
      pool.idle.pop_back();
    }
  }
  ~ScratchLease() {
    const std::lock_guard<std::mutex> lock(pool_.mutex);
    pool_.idle.push_back(std::move(scratch_));
  }
  Scratch& operator*() { return *scratch_; }

 private:
  ScratchPool& pool_;
  std::unique_ptr<Scratch> scratch_;
};

namespace {

// Collects ids and, if wanted, where they come from; keeps both ends from going back.
class Collector {
 public:
  Collector(Tokenizer::Encoding& out, bool offsets) : out_(out), offsets_(offsets) {}
  void Add(int32_t id, int64_t begin, int64_t end) {
    out_.ids.push_back(id);
    if (!offsets_) return;
    last_begin_ = std::max(last_begin_, begin);
    last_end_ = std::max({last_end_, end, last_begin_});
    out_.begin.push_back(last_begin_);
    out_.end.push_back(last_end_);
  }

 private:
  Tokenizer::Encoding& out_;
  bool offsets_;
  int64_t last_begin_ = 0;
  int64_t last_end_ = 0;
};

void AddPart(const AlignedView& text, const AddedTokenMatcher::Part& part, Collector& out) {
  const auto [begin, end] = part.span;
  const bool empty = begin == end;  // white space before it has gone to the token before
  out.Add(part.id, empty ? 0 : text.BeginOf(begin), empty ? 0 : text.EndOf(end - 1));
}

AlignedView RepairUtf8(std::string_view text, RewriteSpace& space, bool track) {
  const AlignedView view{text};
  Utf8Prefix prefix = ValidUtf8Prefix(text);
  if (prefix.bad == 0) return view;
  Rewriter out(view, space, track);
  size_t at = 0;
  while (prefix.bad > 0) {
    out.Keep(at, at + prefix.valid);
    at += prefix.valid;
    out.Replace(at, at + prefix.bad, kReplacementCharacter);
    at += prefix.bad;
    prefix = ValidUtf8Prefix(text.substr(at));
  }
  out.Keep(at, text.size());
  return out.Finish();
}

// The post-processor's tokens around those of the text.
void AddSpecialTokens(const std::vector<int32_t>& pattern, int64_t text_size, bool offsets, Tokenizer::Encoding& out) {
  if (pattern.size() == 1 && pattern[0] == TokenizerParts::kSequence) return;
  Tokenizer::Encoding result;
  bool after = false;
  for (const int32_t id : pattern) {
    if (id == TokenizerParts::kSequence) {
      result.ids.insert(result.ids.end(), out.ids.begin(), out.ids.end());
      result.begin.insert(result.begin.end(), out.begin.begin(), out.begin.end());
      result.end.insert(result.end.end(), out.end.begin(), out.end.end());
      after = true;
      continue;
    }
    result.ids.push_back(id);
    if (!offsets) continue;
    result.begin.push_back(after ? text_size : 0);
    result.end.push_back(after ? text_size : 0);
  }
  out = std::move(result);
}

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<TokenizerParts> parts)
    : parts_(std::move(parts)), pool_(std::make_unique<ScratchPool>()) {}

Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& path) {
  if (IsGgufFile(path)) {
    ASSIGN_OR_RETURN(const GgufHeader header, ReadGgufHeader(path));
    ASSIGN_OR_RETURN(const nlohmann::json json, GgufTokenizerJson(header));
    return FromJson(json.dump(), path + ": metadata");
  }
  std::error_code error;
  const bool folder = std::filesystem::is_directory(path, error);
  const std::string file = folder ? (std::filesystem::path(path) / "tokenizer.json").string() : path;
  ASSIGN_OR_RETURN(const std::string json, ReadFile(file));
  return FromJson(json, file);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromJson(std::string_view json, const std::string& name) {
  ASSIGN_OR_RETURN(std::unique_ptr<TokenizerParts> parts, ReadTokenizerJson(json, name));
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(parts)));
}

void Tokenizer::EncodeInto(std::string_view text, bool add_special_tokens, Scratch& scratch, Encoding& out,
                           bool offsets) const {
  CHECK_LT(text.size(), size_t{1} << 31);
  const TokenizerParts& parts = *parts_;
  const bool track = offsets || parts.pre_tokenizer.needs_origin();
  Collector collector(out, offsets);
  const AlignedView whole = RepairUtf8(text, scratch.repaired, track);
  parts.raw_matcher.Split(whole.text, scratch.raw_parts);
  for (const AddedTokenMatcher::Part& part : scratch.raw_parts) {
    if (part.id >= 0) {
      AddPart(whole, part, collector);
      continue;
    }
    const AlignedView piece =
        Normalize(parts.normalizer, whole.Slice(part.span.begin, part.span.end), scratch.normalized, track);
    parts.normalized_matcher.Split(piece.text, scratch.normalized_parts);
    for (const AddedTokenMatcher::Part& inner : scratch.normalized_parts) {
      if (inner.id >= 0) {
        AddPart(piece, inner, collector);
        continue;
      }
      AlignedView words = piece.Slice(inner.span.begin, inner.span.end);
      parts.pre_tokenizer.Run(words, scratch.words, scratch.pre_tokenized, track);
      for (const ByteSpan& word : scratch.words) {
        scratch.tokens.clear();
        parts.model.Encode(words.text.substr(word.begin, word.end - word.begin), scratch.bpe, scratch.tokens);
        for (const BpeToken& token : scratch.tokens) {
          const size_t begin = word.begin + token.begin;
          const size_t last = token.end > token.begin ? word.begin + token.end - 1 : begin;
          collector.Add(token.id, words.BeginOf(std::min(begin, word.end - 1)),
                        words.EndOf(std::min(last, word.end - 1)));
        }
      }
    }
  }
  if (add_special_tokens) AddSpecialTokens(parts.post_template, static_cast<int64_t>(text.size()), offsets, out);
}

std::vector<int32_t> Tokenizer::Encode(std::string_view text, bool add_special_tokens) const {
  ScratchLease scratch(*pool_);
  Encoding encoding;
  EncodeInto(text, add_special_tokens, *scratch, encoding, false);
  return std::move(encoding.ids);
}

Tokenizer::Encoding Tokenizer::EncodeWithOffsets(std::string_view text, bool add_special_tokens) const {
  ScratchLease scratch(*pool_);
  Encoding encoding;
  EncodeInto(text, add_special_tokens, *scratch, encoding, true);
  return encoding;
}

std::string Tokenizer::Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const {
  DecoderChain chain(parts_->decoder);
  std::string out;
  for (const int32_t id : ids) {
    const bool known = parts_->added_by_id.contains(id) || parts_->vocabulary.Has(id);
    if (!known || (skip_special_tokens && IsSpecial(id))) continue;
    chain.Push(TokenText(id), out);
  }
  chain.Finish(out);
  return out;
}

int64_t Tokenizer::vocab_size() const {
  int64_t size = parts_->vocabulary.end();
  for (const AddedToken& token : parts_->added) size = std::max<int64_t>(size, token.id + 1);
  return size;
}

std::optional<int32_t> Tokenizer::TokenId(std::string_view token) const {
  const auto added = parts_->added_ids.find(token);
  if (added != parts_->added_ids.end()) return added->second;
  const int32_t id = parts_->vocabulary.Find(token);
  if (id == Vocabulary::kNone) return std::nullopt;
  return id;
}

std::string_view Tokenizer::TokenText(int32_t id) const {
  const auto added = parts_->added_by_id.find(id);
  return added != parts_->added_by_id.end() ? std::string_view(parts_->added[added->second].content)
                                            : parts_->vocabulary.Text(id);
}

bool Tokenizer::IsSpecial(int32_t id) const { return parts_->special.contains(id); }

const std::vector<std::string>& Tokenizer::warnings() const { return parts_->warnings; }

class StreamDecoderState {
 public:
  explicit StreamDecoderState(const std::vector<DecoderStep>& steps) : chain(steps) {}
  DecoderChain chain;
};

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens)
    : tokenizer_(&tokenizer),
      skip_special_tokens_(skip_special_tokens),
      state_(std::make_unique<StreamDecoderState>(tokenizer.parts_->decoder)) {}

StreamDecoder::~StreamDecoder() = default;
StreamDecoder::StreamDecoder(StreamDecoder&&) noexcept = default;

std::string StreamDecoder::Push(int32_t id) {
  std::string out;
  const TokenizerParts& parts = *tokenizer_->parts_;
  const bool known = parts.added_by_id.contains(id) || parts.vocabulary.Has(id);
  if (known && !(skip_special_tokens_ && tokenizer_->IsSpecial(id))) {
    state_->chain.Push(tokenizer_->TokenText(id), out);
  }
  return out;
}

std::string StreamDecoder::Finish() {
  std::string out;
  state_->chain.Finish(out);
  return out;
}

}  // namespace thimble
