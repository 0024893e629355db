// The decoders of a tokenizer file, as a chain of stages through which tokens stream.
#include "data/token_decoder.h"

#include <algorithm>

#include "data/pre_tokenizer.h"
#include "data/unicode.h"

namespace thimble {
namespace {

using Kind = DecoderStep::Kind;

std::string ReplaceAll(const SplitPattern& pattern, std::string_view content, std::string_view token) {
  std::vector<ByteSpan> matches;
  pattern.FindAll(token, matches);
  std::string out;
  size_t at = 0;
  for (const ByteSpan& match : matches) {
    out.append(token.substr(at, match.begin - at)).append(content);
    at = match.end;
  }
  out.append(token.substr(at));
  return out;
}

std::string_view StripEnds(const DecoderStep& step, std::string_view token) {
  const size_t size = step.content.size();
  for (int i = 0; i < step.start && token.substr(0, size) == step.content; ++i) token.remove_prefix(size);
  for (int i = 0; i < step.stop && token.size() >= size && token.substr(token.size() - size) == step.content; ++i) {
    token.remove_suffix(size);
  }
  return token;
}

// The byte of a token "<0xHH>", or -1.
int ByteOf(std::string_view token) {
  if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') return -1;
  int value = 0;
  for (const char c : token.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                             : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

// Appends the bytes the token's characters stand for, or the token itself if one of them stands for none.
void AppendByteLevel(std::string_view token, std::string& out) {
  const size_t before = out.size();
  for (size_t at = 0; at < token.size();) {
    const CodePoint c = DecodeUtf8(token.data() + at);
    const int byte = CharacterToByte(c.value);
    if (byte < 0) {
      out.resize(before);
      out.append(token);
      return;
    }
    out.push_back(static_cast<char>(byte));
    at += static_cast<size_t>(c.length);
  }
}

// Moves out all of `bytes` but a sequence at its end that may still be completed.
std::string TakeCompleteUtf8(std::string& bytes) {
  std::string out;
  std::string_view rest = bytes;
  while (true) {
    const Utf8Prefix prefix = ValidUtf8Prefix(rest);
    out.append(rest.substr(0, prefix.valid));
    rest.remove_prefix(prefix.valid);
    if (prefix.bad == 0 || prefix.incomplete) break;
    out.append(kReplacementCharacter);
    rest.remove_prefix(prefix.bad);
  }
  bytes.erase(0, bytes.size() - rest.size());
  return out;
}

}  // namespace

DecoderChain::DecoderChain(const std::vector<DecoderStep>& steps) {
  bool fused = false;
  for (const DecoderStep& step : steps) {
    const bool streams = step.kind == Kind::kFuse || (step.kind == Kind::kStrip && step.stop == 0);
    stages_.push_back({&step, fused, fused && !streams, {}});
    if (step.kind == Kind::kFuse || step.kind == Kind::kByteLevel) fused = true;
  }
}

void DecoderChain::Push(std::string_view token, std::string& out) { Feed(0, std::string(token), out); }

void DecoderChain::Finish(std::string& out) {
  for (size_t i = 0; i < stages_.size(); ++i) {
    Stage& stage = stages_[i];
    if (stage.whole && stage.holds) {
      std::string token = std::move(stage.held);
      stage.held.clear();
      stage.holds = false;
      Apply(i, std::move(token), out);
    }
    End(i, out);
  }
  for (Stage& stage : stages_) {
    stage.held.clear();
    stage.holds = false;
    stage.seen = 0;
  }
}

void DecoderChain::Feed(size_t index, std::string token, std::string& out) {
  if (index == stages_.size()) {
    out += token;
    return;
  }
  Stage& stage = stages_[index];
  if (stage.whole) {
    stage.held += token;
    stage.holds = true;
    return;
  }
  Apply(index, std::move(token), out);
}

void DecoderChain::Apply(size_t index, std::string token, std::string& out) {
  Stage& stage = stages_[index];
  const DecoderStep& step = *stage.step;
  switch (step.kind) {
    case Kind::kFuse:
      return Feed(index + 1, std::move(token), out);
    case Kind::kReplace:
      return Feed(index + 1, ReplaceAll(*step.pattern, step.content, token), out);
    case Kind::kByteLevel:
      AppendByteLevel(token, stage.held);
      return Feed(index + 1, TakeCompleteUtf8(stage.held), out);
    case Kind::kByteFallback: {
      const int byte = ByteOf(token);
      if (byte >= 0) {
        stage.held.push_back(static_cast<char>(byte));
        return;
      }
      FlushBytes(index, out);
      return Feed(index + 1, std::move(token), out);
    }
    case Kind::kStrip: {
      if (!stage.fused || stage.whole) return Feed(index + 1, std::string(StripEnds(step, token)), out);
      std::string_view rest = token;
      while (stage.seen >= 0 && !rest.empty()) {
        if (stage.seen == step.start || rest.substr(0, step.content.size()) != step.content) {
          stage.seen = -1;
        } else {
          rest.remove_prefix(step.content.size());
          ++stage.seen;
        }
      }
      return Feed(index + 1, std::string(rest), out);
    }
    case Kind::kMetaspace: {
      const bool drop = step.drop_first && stage.seen++ == 0;
      return Feed(index + 1, ReplaceAll(SplitPattern::Literal(step.content), drop ? "" : " ", token), out);
    }
    case Kind::kBpe: {
      const std::string previous = std::move(stage.held);
      const bool had = stage.holds;
      stage.held = std::move(token);
      stage.holds = true;
      if (had) Feed(index + 1, ReplaceAll(SplitPattern::Literal(step.content), " ", previous), out);
      return;
    }
    case Kind::kJoinWithSpaces:
      if (stage.seen++ > 0) token.insert(0, 1, ' ');
      return Feed(index + 1, std::move(token), out);
  }
}

// The bytes as one text or, if they are not UTF-8, one U+FFFD for each.
void DecoderChain::FlushBytes(size_t index, std::string& out) {
  const std::string bytes = std::move(stages_[index].held);
  stages_[index].held.clear();
  if (bytes.empty()) return;
  if (ValidUtf8Prefix(bytes).bad == 0) return Feed(index + 1, bytes, out);
  for (size_t i = 0; i < bytes.size(); ++i) Feed(index + 1, std::string(kReplacementCharacter), out);
}

void DecoderChain::End(size_t index, std::string& out) {
  Stage& stage = stages_[index];
  switch (stage.step->kind) {
    case Kind::kByteLevel:
      if (!stage.held.empty()) Feed(index + 1, ReplaceInvalidUtf8(stage.held), out);
      break;
    case Kind::kByteFallback:
      FlushBytes(index, out);
      break;
    case Kind::kBpe:
      if (stage.holds) Feed(index + 1, ReplaceAll(SplitPattern::Literal(stage.step->content), "", stage.held), out);
      break;
    default:
      break;
  }
}

}  // namespace thimble
