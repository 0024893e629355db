// The rows of a head a tile at a time, also of one that does not lie in memory as a whole.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/format.h"

namespace thimble {

class HeadRows {
 public:
  // Row r of the head is row r - first of `rows`.
  struct Window {
    WeightView rows;
    int64_t first = 0;
  };

  // Bytes of a row of a head that is read through a reader, else 0.
  static int64_t FetchedRowBytes(const WeightView& head) {
    return head.reader == nullptr ? 0 : StoredBytes(head.format, head.cols);
  }
  // Scratch for a head that is read through a reader, with tiles of `tile` rows: one tile in use, one under way.
  static int64_t BufferBytes(int64_t tile, int64_t row_bytes) { return 2 * tile * row_bytes; }

  // `buffer` is of BufferBytes, or null where the head has no reader.
  HeadRows(const WeightView& head, int64_t tile, char* buffer) : head_(head), tile_(tile), buffer_(buffer) {}

  // The tile that begins at `begin`, a multiple of the tile; to be called for all tiles in order or not at all. The
  // window before is gone then.
  Window At(int64_t begin) {
    if (head_.reader == nullptr) return {head_, 0};
    if (begin == 0) Begin(0);
    head_.reader->Wait(ticket_);
    WeightView rows = head_;
    rows.reader = nullptr;
    rows.data = Buffer(begin);
    rows.rows = std::min(tile_, head_.rows - begin);
    if (begin + tile_ < head_.rows) Begin(begin + tile_);
    return {rows, begin};
  }

 private:
  int64_t RowBytes() const { return StoredBytes(head_.format, head_.cols); }
  char* Buffer(int64_t begin) const { return buffer_ + begin / tile_ % 2 * tile_ * RowBytes(); }
  void Begin(int64_t begin) {
    const int64_t rows = std::min(tile_, head_.rows - begin);
    ticket_ = head_.reader->Begin(begin * RowBytes(), rows * RowBytes(), Buffer(begin));
  }

  const WeightView& head_;
  int64_t tile_;
  char* buffer_;
  int64_t ticket_ = 0;
};

}  // namespace thimble
