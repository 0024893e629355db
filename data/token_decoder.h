// The decoders of a tokenizer file, as a chain of stages through which tokens stream.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "data/split_pattern.h"

namespace thimble {

struct DecoderStep {
  enum class Kind { kByteLevel, kByteFallback, kFuse, kReplace, kStrip, kMetaspace, kBpe, kJoinWithSpaces };
  Kind kind;
  std::optional<SplitPattern> pattern = {};  // kReplace
  std::string content = {};                  // kReplace: what replaces; kStrip, kMetaspace: the character; kBpe: suffix
  int start = 0, stop = 0;                   // kStrip: at most so many copies of the character go at each end
  bool drop_first = true;                    // kMetaspace: the first token loses its marks
};

// Decodes token texts as they arrive. All that Push and Finish append, joined, does not depend on how often either is
// looked at. Stages hold back what they cannot decide yet: an unfinished UTF-8 sequence, a run of byte tokens. A stage
// behind kFuse or kByteLevel sees one single token; all but kStrip at the start wait there for its end.
class DecoderChain {
 public:
  explicit DecoderChain(const std::vector<DecoderStep>& steps);
  void Push(std::string_view token, std::string& out);
  void Finish(std::string& out);  // then starts anew

 private:
  struct Stage {
    const DecoderStep* step;
    bool fused;          // what comes in are fragments of one token
    bool whole;          // waits for the end of the input
    std::string held;    // what is held back
    bool holds = false;  // kBpe: a token is held; whole: something has come in
    int64_t seen = 0;    // tokens, or for a fused kStrip the copies that went; -1: the start is over
  };
  void Feed(size_t stage, std::string token, std::string& out);
  void Apply(size_t index, std::string token, std::string& out);
  void End(size_t index, std::string& out);
  void FlushBytes(size_t index, std::string& out);

  std::vector<Stage> stages_;
};

}  // namespace thimble
