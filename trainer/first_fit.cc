#include "trainer/first_fit.h"

#include <algorithm>

#include "absl/container/inlined_vector.h"

namespace thimble {
namespace {

// Ascending ranges that neither overlap nor touch.
class RangeSet {
 public:
  struct Range {
    int64_t begin = 0;
    int64_t end = 0;
  };

  // False when the range was in the set before.
  bool Add(int64_t begin, int64_t end) {
    auto at = FirstEndingFrom(begin);
    if (at != ranges_.end() && at->begin <= begin && at->end >= end) return false;
    auto past = at;
    while (past != ranges_.end() && past->begin <= end) ++past;
    if (at == past) {
      ranges_.insert(at, {begin, end});
      return true;
    }
    at->begin = std::min(at->begin, begin);
    at->end = std::max(end, (past - 1)->end);
    ranges_.erase(at + 1, past);
    return true;
  }

  bool empty() const { return ranges_.empty(); }
  // The first offset from `offset` on that has `bytes` free behind it.
  int64_t FirstGap(int64_t offset, int64_t bytes) const {
    for (auto at = FirstEndingFrom(offset + 1); at != ranges_.end() && at->begin < offset + bytes; ++at) {
      offset = at->end;
    }
    return offset;
  }

 private:
  using Ranges = absl::InlinedVector<Range, 1>;
  static bool EndsBefore(const Range& range, int64_t end) { return range.end < end; }
  Ranges::iterator FirstEndingFrom(int64_t end) {
    return std::lower_bound(ranges_.begin(), ranges_.end(), end, EndsBefore);
  }
  Ranges::const_iterator FirstEndingFrom(int64_t end) const {
    return std::lower_bound(ranges_.begin(), ranges_.end(), end, EndsBefore);
  }

  Ranges ranges_;
};

// The ranges in use at each step, in a segment tree over steps: a node holds what is in use during all of its steps
// and what is in use during any of them. Dense placements merge into few ranges, whatever the number of blocks.
class OccupiedSpace {
 public:
  explicit OccupiedSpace(int32_t steps) {
    while (leaves_ < steps) leaves_ *= 2;
    throughout_.resize(2 * leaves_);
    sometime_.resize(2 * leaves_);
  }

  int64_t LowestFree(int32_t first, int32_t last, int64_t bytes) {
    sets_.clear();
    Cover(first, last, [this](int32_t node) { Consider(sometime_[node]); });
    // A node that is cut by the life holds one of its ends.
    int32_t left = (first + leaves_) / 2;
    int32_t right = (last + leaves_) / 2;
    for (; left > 0; left /= 2, right /= 2) {
      Consider(throughout_[left]);
      if (right != left) Consider(throughout_[right]);
    }
    int64_t offset = 0;
    for (size_t agreed = 0, i = 0; agreed < sets_.size(); i = (i + 1) % sets_.size()) {
      const int64_t next = sets_[i]->FirstGap(offset, bytes);
      agreed = next == offset ? agreed + 1 : 1;
      offset = next;
    }
    return offset;
  }

  void Occupy(int32_t first, int32_t last, int64_t begin, int64_t end) {
    Cover(first, last, [=, this](int32_t node) {
      throughout_[node].Add(begin, end);
      for (; node > 0 && sometime_[node].Add(begin, end); node /= 2) {
      }
    });
  }

 private:
  // Calls use(node) for the largest nodes that make up the steps first to last.
  template <typename Use>
  void Cover(int32_t first, int32_t last, const Use& use) const {
    int32_t left = first + leaves_;
    int32_t right = last + leaves_ + 1;
    for (; left < right; left /= 2, right /= 2) {
      if (left % 2 == 1) use(left++);
      if (right % 2 == 1) use(--right);
    }
  }
  void Consider(const RangeSet& set) {
    if (!set.empty()) sets_.push_back(&set);
  }

  int32_t leaves_ = 1;
  std::vector<RangeSet> throughout_;
  std::vector<RangeSet> sometime_;
  std::vector<const RangeSet*> sets_;  // of the query at hand
};

}  // namespace

int64_t PlaceFirstFit(const std::vector<LivingBlock>& blocks, const std::vector<int32_t>& order,
                      std::vector<int64_t>* offsets, int64_t limit) {
  int32_t steps = 1;
  for (const LivingBlock& block : blocks) steps = std::max(steps, block.last_step + 1);
  OccupiedSpace space(steps);
  offsets->assign(blocks.size(), 0);
  int64_t size = 0;
  for (int32_t index : order) {
    const LivingBlock& block = blocks[index];
    if (block.bytes == 0) continue;
    const int64_t offset = space.LowestFree(block.first_step, block.last_step, block.bytes);
    if (offset + block.bytes >= limit) return limit;
    space.Occupy(block.first_step, block.last_step, offset, offset + block.bytes);
    (*offsets)[index] = offset;
    size = std::max(size, offset + block.bytes);
  }
  return size;
}

}  // namespace thimble
