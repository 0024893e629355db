#include "data/chat_render.h"

#include "nlohmann/json.hpp"

namespace thimble {
namespace {

// UTF-8 of Python's white space beyond ASCII.
constexpr std::string_view kWideSpaces[] = {
    "\xC2\x85",     "\xC2\xA0",     "\xE1\x9A\x80", "\xE2\x80\x80", "\xE2\x80\x81", "\xE2\x80\x82", "\xE2\x80\x83",
    "\xE2\x80\x84", "\xE2\x80\x85", "\xE2\x80\x86", "\xE2\x80\x87", "\xE2\x80\x88", "\xE2\x80\x89", "\xE2\x80\x8A",
    "\xE2\x80\xA8", "\xE2\x80\xA9", "\xE2\x80\xAF", "\xE2\x81\x9F", "\xE3\x80\x80"};

bool IsNarrowSpace(char c) { return c == ' ' || (c >= '\t' && c <= '\r') || (c >= '\x1C' && c <= '\x1F'); }

size_t SpaceAtStart(std::string_view text) {
  if (text.empty()) return 0;
  if (IsNarrowSpace(text.front())) return 1;
  for (const std::string_view space : kWideSpaces) {
    if (text.substr(0, space.size()) == space) return space.size();
  }
  return 0;
}

size_t SpaceAtEnd(std::string_view text) {
  if (text.empty()) return 0;
  if (IsNarrowSpace(text.back())) return 1;
  for (const std::string_view space : kWideSpaces) {
    if (text.size() >= space.size() && text.substr(text.size() - space.size()) == space) return space.size();
  }
  return 0;
}

}  // namespace

std::string StripSpace(std::string_view text) {
  for (size_t size; (size = SpaceAtStart(text)) > 0;) text.remove_prefix(size);
  for (size_t size; (size = SpaceAtEnd(text)) > 0;) text.remove_suffix(size);
  return std::string(text);
}

std::string StripNewlinesLeft(std::string_view text) {
  while (!text.empty() && text.front() == '\n') text.remove_prefix(1);
  return std::string(text);
}

std::string StripNewlines(std::string_view text) {
  while (!text.empty() && text.back() == '\n') text.remove_suffix(1);
  return StripNewlinesLeft(text);
}

std::string JsonString(std::string_view text) {
  return nlohmann::json(std::string(text)).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace thimble
