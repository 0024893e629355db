// The BPE model: symbols of a word are merged pair by pair, lowest rank first, leftmost on ties.
// Source: Sennrich, Haddow, Birch 2016, arXiv:1508.07909; byte fallback as in SentencePiece.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "data/vocabulary.h"

namespace thimble {

struct BpeOptions {
  std::string unk_token;                  // empty: an unknown character is dropped
  std::string continuing_subword_prefix;  // before every character of a word but the first
  std::string end_of_word_suffix;         // after the last character of a word
  bool fuse_unk = false;                  // a run of unknown characters is one unk
  bool byte_fallback = false;             // an unknown character becomes <0xHH> tokens if all exist
  bool ignore_merges = false;             // a word that is in the vocabulary is not merged
};

// One token of a word and the bytes of the word it covers.
struct BpeToken {
  int32_t id;
  uint32_t begin;
  uint32_t end;
};

// Working memory of one thread, with a cache of words already seen.
struct BpeScratch {
  struct Symbol {
    int32_t id;  // -1: merged into its left neighbour
    int32_t previous;
    int32_t next;
    uint32_t begin;
    uint32_t end;
  };
  struct Candidate {
    uint32_t rank;
    int32_t at;
    int32_t merged;
  };
  std::vector<Symbol> symbols;
  std::vector<Candidate> heap;
  std::vector<uint32_t> ranks;
  struct CachedWord {
    size_t first;
    size_t count;
  };
  StringMap<CachedWord> cache;
  std::vector<BpeToken> cached_tokens;
};

class BpeModel {
 public:
  // The two symbols become `merged`; a pair added twice keeps the later rank.
  void AddMerge(int32_t left, int32_t right, uint32_t rank, int32_t merged);
  // Call once, after the vocabulary and all merges are there. `byte_level`: words will come as raw bytes, each of which
  // stands for its stand-in character; returns false if the model cannot work so (then the words must hold stand-ins).
  bool Prepare(const Vocabulary& vocabulary, const BpeOptions& options, bool byte_level);

  // Appends the tokens of a word (valid UTF-8, at most 2^31 - 1 bytes).
  void Encode(std::string_view word, BpeScratch& scratch, std::vector<BpeToken>& tokens) const;

 private:
  struct Merge {
    uint32_t rank;
    int32_t merged;
  };
  static uint64_t Key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  const Merge* Find(int32_t left, int32_t right) const {
    const auto found = merges_.find(Key(left, right));
    return found == merges_.end() ? nullptr : &found->second;
  }
  void EncodeChunk(std::string_view word, size_t offset, BpeScratch& scratch, std::vector<BpeToken>& tokens) const;
  void EncodeUncached(std::string_view word, BpeScratch& scratch, std::vector<BpeToken>& tokens) const;
  void ByteSymbols(std::string_view word, BpeScratch& scratch) const;
  void CharacterSymbols(std::string_view word, BpeScratch& scratch) const;
  void MergeShort(BpeScratch& scratch) const;
  void MergeLong(BpeScratch& scratch) const;
  void AddCandidate(int32_t at, BpeScratch& scratch) const;
  bool CanCutBeforeSpaceMark() const;

  const Vocabulary* vocabulary_ = nullptr;
  BpeOptions options_;
  absl::flat_hash_map<uint64_t, Merge> merges_;
  bool byte_level_ = false;
  bool cut_before_space_mark_ = false;
  int32_t unk_ = Vocabulary::kNone;
  std::array<int32_t, 256> byte_ids_{};      // byte level: the token of each byte
  std::array<int32_t, 256> fallback_ids_{};  // <0xHH>, or kNone
  StringMap<int32_t> raw_ids_;               // byte level with ignore_merges: whole words by their bytes
};

}  // namespace thimble
