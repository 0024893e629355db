#include "data/choice_rows.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "data/byte_source.h"
#include "data/model_tokens.h"
#include "nlohmann/json.hpp"
#include "ops/check.h"

namespace thimble {
namespace {

using Json = nlohmann::json;

absl::StatusOr<int64_t> FindAnswer(const Json& answer, const std::vector<std::string>& choices) {
  const auto count = static_cast<int64_t>(choices.size());
  if (answer.is_number_integer()) {
    const bool fits = !answer.is_number_unsigned() || answer.get<uint64_t>() < choices.size();
    const int64_t index = fits ? answer.get<int64_t>() : -1;
    if (index >= 0 && index < count) return index;
  }
  if (answer.is_string()) {
    const auto text = answer.get<std::string>();
    const auto found = std::find(choices.begin(), choices.end(), text);
    if (found != choices.end()) return found - choices.begin();
    if (text.size() == 1 && text[0] >= 'A' && text[0] - 'A' < count) return text[0] - 'A';
  }
  return absl::InvalidArgumentError(absl::StrCat("'answer': found ", answer.dump(), ", expected an index from 0 to ",
                                                 count - 1, ", the text of a choice, or a letter from A on"));
}

absl::StatusOr<ChoiceRow> ParseChoiceRow(const std::string& text) {
  if (FindInvalidUtf8(text) >= 0) return absl::InvalidArgumentError("invalid UTF-8; expected UTF-8 text");
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return absl::InvalidArgumentError("expected one JSON object a line, with context, choices and answer");
  }
  for (const char* key : {"context", "choices", "answer"}) {
    if (!json.contains(key)) return absl::InvalidArgumentError(absl::StrCat("missing key '", key, "'"));
  }
  ChoiceRow row;
  if (!json["context"].is_string()) {
    return absl::InvalidArgumentError(
        absl::StrCat("'context': expected a string, found ", json["context"].type_name()));
  }
  row.context = json["context"].get<std::string>();
  const Json& choices = json["choices"];
  if (!choices.is_array() || choices.size() < 2) {
    return absl::InvalidArgumentError("'choices': expected a list of two or more strings");
  }
  for (const Json& choice : choices) {
    if (!choice.is_string() || choice.get_ref<const std::string&>().empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("'choices': expected strings that are not empty, found ", choice.dump()));
    }
    row.choices.push_back(choice.get<std::string>());
  }
  ASSIGN_OR_RETURN(row.answer, FindAnswer(json["answer"], row.choices));
  return row;
}

}  // namespace

absl::StatusOr<std::vector<ChoiceRow>> ReadChoiceRows(const std::string& path) {
  ASSIGN_OR_RETURN(std::unique_ptr<ByteSource> source, ByteSource::Open(path));
  LineReader reader(std::move(source));
  RETURN_IF_ERROR(reader.SkipByteOrderMark());
  std::vector<ChoiceRow> rows;
  while (true) {
    std::string text;
    const int64_t line = reader.line();
    ASSIGN_OR_RETURN(const bool more, reader.AppendLine(&text));
    if (!more) break;
    if (text.find_first_not_of(" \t\r\n") == std::string::npos) continue;
    absl::StatusOr<ChoiceRow> row = ParseChoiceRow(text);
    if (!row.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ":", line, ": ", std::string(row.status().message())));
    }
    row->line = line;
    rows.push_back(*std::move(row));
  }
  if (rows.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": no questions"));
  return rows;
}

absl::StatusOr<EncodedRow> EncodeChoice(const Tokenizer& tokenizer, const ModelTokens& tokens,
                                        const std::string& context, const std::string& choice, int64_t max_tokens,
                                        bool* cut) {
  const size_t end = context.find_last_not_of(" \t\r\n\f\v") + 1;  // 0 for white space alone
  const std::string before = context.substr(0, end);
  std::vector<int32_t> whole = tokenizer.Encode(absl::StrCat(context, " ", choice), false);
  if (whole.empty()) return absl::InvalidArgumentError("the tokenizer makes no token of context and choice");
  size_t first = tokenizer.Encode(before, false).size();
  if (first >= whole.size()) first = whole.size() - 1;  // the choice became a part of the context's last token
  int32_t start = -1;
  if (tokens.add_bos && tokens.bos_id >= 0) start = tokens.bos_id;
  if (start < 0 && first == 0) start = tokens.bos_id >= 0 ? tokens.bos_id : tokens.eos_id;
  if (start < 0 && first == 0) {
    return absl::InvalidArgumentError("the context is empty, and the tokenizer names no BOS or EOS to stand before it");
  }
  if (start >= 0) {
    whole.insert(whole.begin(), start);
    ++first;
  }
  *cut = static_cast<int64_t>(whole.size()) > max_tokens;
  if (*cut) {
    const size_t lost = whole.size() - static_cast<size_t>(max_tokens);
    whole.erase(whole.begin(), whole.begin() + static_cast<int64_t>(lost));
    first = first > lost ? first - lost : 1;
  }
  EncodedRow row;
  row.tokens = std::move(whole);
  row.is_target.assign(row.tokens.size(), 0);
  std::fill(row.is_target.begin() + static_cast<int64_t>(std::max<size_t>(first, 1)), row.is_target.end(), 1);
  return row;
}

int64_t CountCharacters(const std::string& text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

}  // namespace thimble
