// Text that remembers which bytes of the original each of its bytes came from, while it is rewritten step by step.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace thimble {

struct ByteSpan {
  size_t begin;
  size_t end;
  friend bool operator==(const ByteSpan&, const ByteSpan&) = default;
};

// Owns nothing. Without arrays the text stands in the original from byte `origin` on, byte for byte.
struct AlignedView {
  std::string_view text;
  const int64_t* begins = nullptr;
  const int64_t* ends = nullptr;
  int64_t origin = 0;

  int64_t BeginOf(size_t byte) const { return begins ? begins[byte] : origin + static_cast<int64_t>(byte); }
  int64_t EndOf(size_t byte) const { return ends ? ends[byte] : origin + static_cast<int64_t>(byte) + 1; }
  AlignedView Slice(size_t from, size_t to) const {
    const int64_t shift = static_cast<int64_t>(from);
    return {text.substr(from, to - from), begins ? begins + from : nullptr, ends ? ends + from : nullptr,
            begins ? origin : origin + shift};
  }
};

struct AlignedBuffer {
  std::string text;
  std::vector<int64_t> begins;
  std::vector<int64_t> ends;
};

// Two buffers used in turn: a step reads the view that the step before wrote.
struct RewriteSpace {
  AlignedBuffer buffers[2];
  int next = 0;
};

// Writes a new text from an old one, from left to right. The old view may lie in the buffer not used next.
// With track == false the result is text alone and its offsets mean nothing.
class Rewriter {
 public:
  Rewriter(const AlignedView& source, RewriteSpace& space, bool track)
      : source_(source), out_(space.buffers[space.next]), track_(track) {
    space.next ^= 1;
    out_.text.clear();
    out_.begins.clear();
    out_.ends.clear();
    out_.text.reserve(source.text.size() + source.text.size() / 8 + 8);
  }

  size_t size() const { return out_.text.size(); }

  // Copies bytes [from, to) of the source.
  void Keep(size_t from, size_t to) {
    out_.text.append(source_.text.substr(from, to - from));
    if (!track_) return;
    for (size_t i = from; i < to; ++i) {
      out_.begins.push_back(source_.BeginOf(i));
      out_.ends.push_back(source_.EndOf(i));
    }
  }

  // Writes `content` for bytes [from, to) of the source; from == to inserts it before byte `from`.
  void Replace(size_t from, size_t to, std::string_view content) {
    out_.text.append(content);
    if (!track_) return;
    const size_t size = source_.text.size();
    int64_t begin = source_.origin, end;
    if (from < size) {
      begin = source_.BeginOf(from);
    } else if (size > 0) {
      begin = source_.EndOf(size - 1);
    }
    end = to > from ? source_.EndOf(to - 1) : begin;
    out_.begins.insert(out_.begins.end(), content.size(), begin);
    out_.ends.insert(out_.ends.end(), content.size(), end);
  }

  AlignedView Finish() const {
    return {out_.text, track_ ? out_.begins.data() : nullptr, track_ ? out_.ends.data() : nullptr, source_.origin};
  }

 private:
  AlignedView source_;
  AlignedBuffer& out_;
  bool track_;
};

}  // namespace thimble
