// Unicode normalisation forms as the tokenizers package computes them, with the data of Unicode 9: characters added
// since then neither decompose, nor compose, nor change places with their neighbours.
#pragma once

#include "data/aligned_text.h"

namespace thimble {

enum class UnicodeForm { kNfc, kNfd, kNfkc, kNfkd };

// The result lies in `space` or, if nothing changed, in `text`. Each stretch that changes (a starter and what follows
// it up to the next one that stays) keeps its place as a whole.
AlignedView NormalizeUnicode(UnicodeForm form, const AlignedView& text, RewriteSpace& space, bool track);

// General category M in Unicode 9.
bool IsUnicode9Mark(char32_t c);

}  // namespace thimble
