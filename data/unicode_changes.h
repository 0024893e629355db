// What Unicode 16 says and the Unicode data at hand does not: PCRE2 10.42 has Unicode 14, utf8proc 2.8 Unicode 15.
#pragma once

#include <utf8proc.h>

#include "absl/types/span.h"

namespace thimble {

// General category of [first, last] in Unicode 16, where Unicode 14 has another one.
struct CategoryChange {
  char32_t first;
  char32_t last;
  utf8proc_category_t category;
};
absl::Span<const CategoryChange> CategoryChanges();  // ascending

struct CodePointRange {
  char32_t first;
  char32_t last;
};
// General category M in Unicode 16, not in Unicode 9 (ascending); and other characters with a decomposition newer
// than 9.
absl::Span<const CodePointRange> MarksSinceUnicode9();
absl::Span<const CodePointRange> DecompositionsSinceUnicode9();

// Lower case (Unicode 17, as Rust has it) of [first, last] is the code point `distance` further.
struct LowercaseChange {
  char32_t first;
  char32_t last;
  int32_t distance;
};
absl::Span<const LowercaseChange> LowercaseChanges();  // what utf8proc does not know

// A character that Unicode 14 puts into the category Unicode 16 puts `c` into, with as many bytes in UTF-8. U+180E,
// a space for PCRE2 though its category is Cf, gives U+200B.
char32_t StandIn(char32_t c);

}  // namespace thimble
