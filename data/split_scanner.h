// Hand-written scanners for the splitting expressions of GPT-2, Llama 3 and Qwen 2: the same matches as the regular
// expression, several times as fast.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "data/aligned_text.h"

namespace thimble {

inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

enum class SplitScanner { kGpt2, kLlama3, kQwen2 };

// The scanner for exactly this pattern, if there is one.
std::optional<SplitScanner> ScannerFor(std::string_view pattern);

// All matches in valid UTF-8; they cover the text without gaps.
void ScanAll(SplitScanner scanner, std::string_view text, std::vector<ByteSpan>& matches);

}  // namespace thimble
