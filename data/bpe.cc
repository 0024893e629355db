// The BPE model: symbols of a word are merged pair by pair, lowest rank first, leftmost on ties. Short words scan an
// array; long ones keep a heap of candidates over a linked list, so that a megabyte without spaces is not quadratic.
#include "data/bpe.h"

#include <algorithm>
#include <cstdio>
#include <limits>

#include "data/pre_tokenizer.h"
#include "data/unicode.h"
#include "ops/check.h"

namespace thimble {
namespace {

constexpr size_t kShortWord = 40;           // symbols; above it the heap is faster
constexpr size_t kLongestCachedWord = 128;  // bytes
constexpr size_t kMostCachedWords = 1 << 16;
constexpr uint32_t kNoRank = std::numeric_limits<uint32_t>::max();
constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581

// The bytes a byte-level token stands for; false if a character of it stands for none.
bool RawBytes(std::string_view token, std::string& bytes) {
  bytes.clear();
  for (size_t at = 0; at < token.size();) {
    const CodePoint c = DecodeUtf8(token.data() + at);
    const int byte = CharacterToByte(c.value);
    if (byte < 0) return false;
    bytes.push_back(static_cast<char>(byte));
    at += static_cast<size_t>(c.length);
  }
  return true;
}

bool Later(const BpeScratch::Candidate& a, const BpeScratch::Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.at > b.at;
}

}  // namespace

void BpeModel::AddMerge(int32_t left, int32_t right, uint32_t rank, int32_t merged) {
  merges_.insert_or_assign(Key(left, right), Merge{rank, merged});
}

bool BpeModel::Prepare(const Vocabulary& vocabulary, const BpeOptions& options, bool byte_level) {
  vocabulary_ = &vocabulary;
  options_ = options;
  unk_ = options.unk_token.empty() ? Vocabulary::kNone : vocabulary.Find(options.unk_token);
  byte_level_ = byte_level && options.continuing_subword_prefix.empty() && options.end_of_word_suffix.empty();
  for (int byte = 0; byte < 256; ++byte) {
    const size_t index = static_cast<size_t>(byte);
    std::string character;
    AppendUtf8(ByteToCharacter(static_cast<unsigned char>(byte)), character);
    byte_ids_[index] = vocabulary.Find(character);
    if (byte_ids_[index] == Vocabulary::kNone) byte_level_ = false;
    char name[8];
    std::snprintf(name, sizeof(name), "<0x%02X>", byte);
    fallback_ids_[index] = vocabulary.Find(name);
  }
  cut_before_space_mark_ = CanCutBeforeSpaceMark();
  if (byte_level_ && options.ignore_merges) {
    std::string bytes;
    for (int32_t id = 0; id < vocabulary.end(); ++id) {
      if (vocabulary.Has(id) && RawBytes(vocabulary.Text(id), bytes)) raw_ids_[bytes] = id;
    }
  }
  return byte_level_;
}

// True if no merge can join a space mark to something else on its left: then a word falls apart there into words that
// are merged alone, with the same result.
bool BpeModel::CanCutBeforeSpaceMark() const {
  if (!options_.continuing_subword_prefix.empty() || !options_.end_of_word_suffix.empty()) return false;
  if (vocabulary_->Find(kSpaceMark) == Vocabulary::kNone) return false;
  for (const auto& [pair, merge] : merges_) {
    const std::string_view text = vocabulary_->Text(merge.merged);
    size_t marks = 0;
    while (text.substr(marks, kSpaceMark.size()) == kSpaceMark) marks += kSpaceMark.size();
    if (text.find(kSpaceMark, marks) != std::string_view::npos) return false;
  }
  return true;
}

void BpeModel::Encode(std::string_view word, BpeScratch& scratch, std::vector<BpeToken>& tokens) const {
  CHECK_LT(word.size(), size_t{1} << 31);
  if (options_.ignore_merges) {
    int32_t id = Vocabulary::kNone;
    if (!byte_level_) {
      id = vocabulary_->Find(word);
    } else if (const auto found = raw_ids_.find(word); found != raw_ids_.end()) {
      id = found->second;
    }
    if (id != Vocabulary::kNone) {
      tokens.push_back({id, 0, static_cast<uint32_t>(word.size())});
      return;
    }
  }
  size_t begin = 0;
  while (!byte_level_ && cut_before_space_mark_) {
    // The next mark that does not follow a mark.
    size_t at = begin;
    while (word.substr(at, kSpaceMark.size()) == kSpaceMark) at += kSpaceMark.size();
    at = word.find(kSpaceMark, at);
    if (at == std::string_view::npos) break;
    EncodeChunk(word.substr(begin, at - begin), begin, scratch, tokens);
    begin = at;
  }
  EncodeChunk(word.substr(begin), begin, scratch, tokens);
}

void BpeModel::EncodeChunk(std::string_view word, size_t offset, BpeScratch& scratch,
                           std::vector<BpeToken>& tokens) const {
  const uint32_t shift = static_cast<uint32_t>(offset);
  const size_t first = tokens.size();
  if (word.size() > kLongestCachedWord) {
    EncodeUncached(word, scratch, tokens);
    for (size_t i = first; i < tokens.size(); ++i) {
      tokens[i].begin += shift;
      tokens[i].end += shift;
    }
    return;
  }
  auto found = scratch.cache.find(word);
  if (found == scratch.cache.end()) {
    if (scratch.cache.size() >= kMostCachedWords) {
      scratch.cache.clear();
      scratch.cached_tokens.clear();
    }
    const size_t start = scratch.cached_tokens.size();
    EncodeUncached(word, scratch, scratch.cached_tokens);
    found = scratch.cache.try_emplace(std::string(word)).first;
    found->second = {start, scratch.cached_tokens.size() - start};
  }
  for (size_t i = 0; i < found->second.count; ++i) {
    const BpeToken& token = scratch.cached_tokens[found->second.first + i];
    tokens.push_back({token.id, token.begin + shift, token.end + shift});
  }
}

void BpeModel::EncodeUncached(std::string_view word, BpeScratch& scratch, std::vector<BpeToken>& tokens) const {
  scratch.symbols.clear();
  byte_level_ ? ByteSymbols(word, scratch) : CharacterSymbols(word, scratch);
  scratch.symbols.size() <= kShortWord ? MergeShort(scratch) : MergeLong(scratch);
  for (const BpeScratch::Symbol& symbol : scratch.symbols) {
    if (symbol.id >= 0) tokens.push_back({symbol.id, symbol.begin, symbol.end});
  }
}

void BpeModel::ByteSymbols(std::string_view word, BpeScratch& scratch) const {
  for (uint32_t i = 0; i < word.size(); ++i) {
    scratch.symbols.push_back({byte_ids_[static_cast<unsigned char>(word[i])], 0, 0, i, i + 1});
  }
}

void BpeModel::CharacterSymbols(std::string_view word, BpeScratch& scratch) const {
  struct Unknown {
    uint32_t begin, end;
    bool pending;
  } unknown{0, 0, false};
  // Symbols are numbered in the order written, which byte tokens may jump; their spans must not go back.
  uint32_t reached = 0;
  const auto add = [&](int32_t id, uint32_t begin, uint32_t end) {
    begin = std::max(begin, reached);
    reached = std::max(end, reached);
    scratch.symbols.push_back({id, 0, 0, begin, reached});
  };
  const auto flush = [&] {
    if (unknown.pending) add(unk_, unknown.begin, unknown.end);
    unknown.pending = false;
  };
  std::string decorated;
  for (size_t at = 0; at < word.size();) {
    const size_t next = at + static_cast<size_t>(DecodeUtf8(word.data() + at).length);
    std::string_view symbol = word.substr(at, next - at);
    const bool prefixed = at > 0 && !options_.continuing_subword_prefix.empty();
    const bool suffixed = next == word.size() && !options_.end_of_word_suffix.empty();
    if (prefixed || suffixed) {
      decorated = prefixed ? options_.continuing_subword_prefix : "";
      decorated.append(symbol);
      if (suffixed) decorated += options_.end_of_word_suffix;
      symbol = decorated;
    }
    const uint32_t begin = static_cast<uint32_t>(at), end = static_cast<uint32_t>(next);
    at = next;
    if (const int32_t id = vocabulary_->Find(symbol); id != Vocabulary::kNone) {
      flush();
      add(id, begin, end);
      continue;
    }
    const auto has_token = [this](char c) { return fallback_ids_[static_cast<unsigned char>(c)] != Vocabulary::kNone; };
    if (options_.byte_fallback && std::all_of(symbol.begin(), symbol.end(), has_token)) {
      // A prefix or suffix stands for no byte of the word.
      for (uint32_t i = 0; i < symbol.size(); ++i) {
        add(fallback_ids_[static_cast<unsigned char>(symbol[i])], std::min(begin + i, end),
            std::min(begin + i + 1, end));
      }
      continue;
    }
    if (unk_ == Vocabulary::kNone) continue;
    if (!options_.fuse_unk) flush();
    if (!unknown.pending) unknown.begin = begin;
    unknown.end = end;
    unknown.pending = true;
  }
  flush();
}

void BpeModel::MergeShort(BpeScratch& scratch) const {
  auto& symbols = scratch.symbols;
  auto& ranks = scratch.ranks;
  const auto rank_at = [this, &symbols](size_t i) {
    const Merge* merge = i + 1 < symbols.size() ? Find(symbols[i].id, symbols[i + 1].id) : nullptr;
    return merge == nullptr ? kNoRank : merge->rank;
  };
  ranks.resize(symbols.size());
  for (size_t i = 0; i < symbols.size(); ++i) ranks[i] = rank_at(i);
  while (symbols.size() > 1) {
    const auto lowest = std::min_element(ranks.begin(), ranks.end());
    if (*lowest == kNoRank) return;
    const size_t i = static_cast<size_t>(lowest - ranks.begin());
    symbols[i].id = Find(symbols[i].id, symbols[i + 1].id)->merged;
    symbols[i].end = symbols[i + 1].end;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(i) + 1);
    ranks.erase(lowest + 1);
    ranks[i] = rank_at(i);
    if (i > 0) ranks[i - 1] = rank_at(i - 1);
  }
}

void BpeModel::AddCandidate(int32_t at, BpeScratch& scratch) const {
  const auto& symbol = scratch.symbols[static_cast<size_t>(at)];
  if (symbol.next < 0) return;
  const Merge* merge = Find(symbol.id, scratch.symbols[static_cast<size_t>(symbol.next)].id);
  if (merge != nullptr) scratch.heap.push_back({merge->rank, at, merge->merged});
}

void BpeModel::MergeLong(BpeScratch& scratch) const {
  auto& symbols = scratch.symbols;
  auto& heap = scratch.heap;
  heap.clear();
  const int32_t count = static_cast<int32_t>(symbols.size());
  for (int32_t i = 0; i < count; ++i) {
    symbols[static_cast<size_t>(i)].previous = i - 1;
    symbols[static_cast<size_t>(i)].next = i + 1 < count ? i + 1 : -1;
  }
  for (int32_t i = 0; i < count; ++i) AddCandidate(i, scratch);
  std::make_heap(heap.begin(), heap.end(), Later);
  const auto add = [&](int32_t at) {
    const size_t before = heap.size();
    AddCandidate(at, scratch);
    if (heap.size() > before) std::push_heap(heap.begin(), heap.end(), Later);
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), Later);
    const BpeScratch::Candidate best = heap.back();
    heap.pop_back();
    BpeScratch::Symbol& left = symbols[static_cast<size_t>(best.at)];
    if (left.id < 0 || left.next < 0) continue;
    BpeScratch::Symbol& right = symbols[static_cast<size_t>(left.next)];
    const Merge* merge = Find(left.id, right.id);
    if (merge == nullptr || merge->rank != best.rank || merge->merged != best.merged) continue;  // outdated
    left.id = best.merged;
    left.end = right.end;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = best.at;
    add(best.at);
    if (left.previous >= 0) add(left.previous);
  }
}

}  // namespace thimble
