#include "data/dataset_forms.h"

#include <algorithm>
#include <initializer_list>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"
#include "ops/check.h"

namespace thimble {
namespace {

using Json = nlohmann::json;

struct FormName {
  RowForm form;
  const char* name;
};
constexpr FormName kForms[] = {{RowForm::kAuto, "auto"},
                               {RowForm::kAlpaca, "alpaca"},
                               {RowForm::kMessages, "messages"},
                               {RowForm::kPromptCompletion, "prompt_completion"},
                               {RowForm::kText, "text"}};

struct RoleName {
  const char* name;
  const char* role;
};
// ShareGPT's names as its exports and LLaMA-Factory use them.
constexpr RoleName kRoles[] = {{"system", "system"}, {"user", "user"},
                               {"human", "user"},    {"assistant", "assistant"},
                               {"gpt", "assistant"}, {"chatgpt", "assistant"},
                               {"bot", "assistant"}, {"model", "assistant"},
                               {"tool", "tool"},     {"observation", "tool"},
                               {"ipython", "tool"},  {"function_response", "tool"},
                               {"function", "tool"}, {"function_call", "function_call"}};

// Sets an empty name to the first of `usual` that the row has; whether the column exists.
bool FindColumn(const Json& row, std::initializer_list<const char*> usual, std::string* name) {
  if (!name->empty()) return row.contains(*name);
  for (const char* candidate : usual) {
    if (row.contains(candidate)) {
      *name = candidate;
      return true;
    }
  }
  return false;
}

bool FindAlpaca(const Json& row, ColumnNames* columns) {
  const bool found = FindColumn(row, {"instruction"}, &columns->instruction) &&
                     FindColumn(row, {"output", "response"}, &columns->output);
  if (columns->input.empty()) columns->input = "input";
  if (columns->system.empty()) columns->system = "system";
  return found;
}

bool FindMessages(const Json& row, ColumnNames* columns) {
  if (columns->system.empty()) columns->system = "system";
  return FindColumn(row, {"messages", "conversations", "conversation"}, &columns->messages);
}

bool FindPromptCompletion(const Json& row, ColumnNames* columns) {
  if (columns->system.empty()) columns->system = "system";
  if (columns->prompt.empty() && columns->completion.empty() && !row.contains("prompt") && row.contains("question")) {
    return FindColumn(row, {"question"}, &columns->prompt) && FindColumn(row, {"answer"}, &columns->completion);
  }
  return FindColumn(row, {"prompt", "question"}, &columns->prompt) &&
         FindColumn(row, {"completion", "response", "answer"}, &columns->completion);
}

bool FindText(const Json& row, ColumnNames* columns) { return FindColumn(row, {"text"}, &columns->text); }

const char* Wanted(RowForm form) {
  switch (form) {
    case RowForm::kAlpaca:
      return "'instruction' and 'output' (or 'response')";
    case RowForm::kMessages:
      return "'messages' or 'conversations'";
    case RowForm::kPromptCompletion:
      return "'prompt' and 'completion', or 'question' and 'answer'";
    case RowForm::kText:
      return "'text'";
    case RowForm::kAuto:
      break;
  }
  return "those of a form: 'messages' or 'conversations'; 'instruction' and 'output'; 'prompt' and 'completion'; "
         "'question' and 'answer'; or 'text'. Name the form and its columns in the recipe";
}

// The text of a message: a string, or a list of text parts.
absl::StatusOr<std::string> ContentText(const Json& content, const std::string& place) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) {
    return absl::InvalidArgumentError(absl::StrCat(place, ": expected a string, found ", content.type_name()));
  }
  std::string text;
  for (const Json& part : content) {
    if (!part.is_object() || part.value("type", Json()) != "text" || !part.contains("text") ||
        !part["text"].is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat(place, ": expected parts of type text only; other parts (images, ...) cannot be trained on"));
    }
    text += part["text"].get<std::string>();
  }
  return text;
}

absl::StatusOr<Message> ParseMessage(const Json& json, const ColumnNames& columns, const std::string& place) {
  if (!json.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(place, ": expected an object, found ", json.type_name()));
  }
  std::string role_key = columns.role;
  std::string content_key = columns.content;
  if (!FindColumn(json, {"role", "from"}, &role_key) || !json[role_key].is_string()) {
    return absl::InvalidArgumentError(
        absl::StrCat(place, ": expected a string '", role_key.empty() ? "role' or 'from" : role_key, "'"));
  }
  if (json.contains("tool_calls") && !json["tool_calls"].empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        place, ": 'tool_calls' is not supported; write the call as the text of a message with role function_call"));
  }
  if (!FindColumn(json, {"content", "value"}, &content_key)) {
    return absl::InvalidArgumentError(
        absl::StrCat(place, ": expected '", content_key.empty() ? "content' or 'value" : content_key, "'"));
  }
  const auto name = json[role_key].get<std::string>();
  const auto* role =
      std::find_if(std::begin(kRoles), std::end(kRoles), [&](const RoleName& known) { return known.name == name; });
  if (role == std::end(kRoles)) {
    return absl::InvalidArgumentError(absl::StrCat(
        place, ": unknown role '", name, "'; allowed: ",
        absl::StrJoin(kRoles, ", ", [](std::string* out, const RoleName& known) { out->append(known.name); })));
  }
  Message message;
  message.role = role->role;
  ASSIGN_OR_RETURN(message.content, ContentText(json[content_key], absl::StrCat(place, ".", content_key)));
  return message;
}

}  // namespace

const char* RowFormName(RowForm form) { return kForms[static_cast<int>(form)].name; }

absl::StatusOr<RowForm> ParseRowForm(const std::string& name) {
  for (const FormName& form : kForms) {
    if (form.name == name) return form.form;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "unknown form '", name, "' of a data set; allowed: ",
      absl::StrJoin(kForms, ", ", [](std::string* out, const FormName& form) { out->append(form.name); })));
}

struct JsonRow::Value {
  Json json;
};

JsonRow::JsonRow(std::unique_ptr<Value> value) : value_(std::move(value)) {}
JsonRow::~JsonRow() = default;

absl::StatusOr<std::unique_ptr<JsonRow>> JsonRow::Parse(const std::string& json) {
  auto value = std::make_unique<Value>();
  try {
    value->json = Json::parse(json);
  } catch (const Json::exception& error) {
    // The library's own prefix, "[json.exception.parse_error.101] parse error at line 1, column 5: ", is cut to the
    // end.
    std::string message = error.what();
    const size_t column = message.find("column ");
    if (column != std::string::npos) message = message.substr(column);
    return absl::InvalidArgumentError(absl::StrCat("malformed JSON: ", message));
  }
  if (!value->json.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat("expected a JSON object, found ", value->json.type_name()));
  }
  return std::unique_ptr<JsonRow>(new JsonRow(std::move(value)));
}

std::string JsonRow::ColumnList() const {
  std::vector<std::string> names;
  for (const auto& item : value_->json.items()) names.push_back(item.key());
  return absl::StrJoin(names, ", ");
}

absl::Status JsonRow::ResolveColumns(RowForm* form, ColumnNames* columns) const {
  const Json& row = value_->json;
  const std::pair<RowForm, bool (*)(const Json&, ColumnNames*)> forms[] = {
      {RowForm::kMessages, FindMessages},
      {RowForm::kAlpaca, FindAlpaca},
      {RowForm::kPromptCompletion, FindPromptCompletion},
      {RowForm::kText, FindText}};
  for (const auto& [candidate, find] : forms) {
    if (*form != RowForm::kAuto && *form != candidate) continue;
    ColumnNames found = *columns;
    if (!find(row, &found)) continue;
    *form = candidate;
    *columns = found;
    return absl::OkStatus();
  }
  const ColumnNames& given = *columns;
  std::string named =
      absl::StrCat(given.instruction, given.output, given.messages, given.prompt, given.completion, given.text);
  return absl::InvalidArgumentError(absl::StrCat("missing columns: expected ",
                                                 named.empty() ? Wanted(*form) : "the columns that the recipe names",
                                                 "; found columns ", ColumnList()));
}

std::string JsonRow::DescribeColumns(RowForm form, const ColumnNames& columns) const {
  std::vector<std::string> used;
  switch (form) {
    case RowForm::kAlpaca:
      used = {columns.instruction, columns.input, columns.output, columns.system};
      break;
    case RowForm::kMessages:
      used = {columns.messages, columns.system};
      break;
    case RowForm::kPromptCompletion:
      used = {columns.prompt, columns.completion, columns.system};
      break;
    default:
      used = {columns.text};
  }
  std::vector<std::string> present;
  std::vector<std::string> unused;
  for (const auto& item : value_->json.items()) {
    (std::find(used.begin(), used.end(), item.key()) != used.end() ? present : unused).push_back(item.key());
  }
  return absl::StrCat("columns ", absl::StrJoin(present, ", "),
                      unused.empty() ? "" : absl::StrCat("; not used: ", absl::StrJoin(unused, ", ")));
}

absl::StatusOr<std::string> JsonRow::Text(const std::string& column, bool may_be_absent) const {
  const auto found = value_->json.find(column);
  if (found == value_->json.end() || (found->is_null() && may_be_absent)) {
    if (may_be_absent) return std::string();
    return absl::InvalidArgumentError(absl::StrCat("missing column '", column, "'; found columns ", ColumnList()));
  }
  if (!found->is_string()) {
    return absl::InvalidArgumentError(
        absl::StrCat("column '", column, "': expected a string, found ", found->type_name()));
  }
  return found->get<std::string>();
}

absl::Status JsonRow::FillMessages(const ColumnNames& columns, Row* row) const {
  const auto found = value_->json.find(columns.messages);
  if (found == value_->json.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("missing column '", columns.messages, "'; found columns ", ColumnList()));
  }
  if (!found->is_array() || found->empty()) {
    return absl::InvalidArgumentError(absl::StrCat("column '", columns.messages,
                                                   "': expected a list of messages, found ",
                                                   found->is_array() ? "an empty list" : found->type_name()));
  }
  for (size_t i = 0; i < found->size(); ++i) {
    ASSIGN_OR_RETURN(Message message, ParseMessage((*found)[i], columns, absl::StrCat(columns.messages, "[", i, "]")));
    row->messages.push_back(std::move(message));
  }
  return absl::OkStatus();
}

absl::Status JsonRow::Fill(RowForm form, const ColumnNames& columns, Row* row) const {
  row->form = form;
  if (form == RowForm::kText) {
    ASSIGN_OR_RETURN(row->text, Text(columns.text, false));
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(std::string system, Text(columns.system, true));
  if (!system.empty()) row->messages.push_back({"system", std::move(system)});
  if (form == RowForm::kMessages) return FillMessages(columns, row);
  const bool is_alpaca = form == RowForm::kAlpaca;
  ASSIGN_OR_RETURN(std::string user, Text(is_alpaca ? columns.instruction : columns.prompt, false));
  ASSIGN_OR_RETURN(std::string assistant, Text(is_alpaca ? columns.output : columns.completion, false));
  if (is_alpaca) {
    ASSIGN_OR_RETURN(row->input, Text(columns.input, true));
  }
  row->messages.push_back({"user", std::move(user)});
  row->messages.push_back({"assistant", std::move(assistant)});
  return absl::OkStatus();
}

absl::Status JsonRow::FillLabels(const std::vector<std::string>& columns, Row* row) const {
  row->labels.clear();
  for (const std::string& column : columns) {
    const auto found = value_->json.find(column);
    std::string label;
    if (found != value_->json.end() && !found->is_null()) {
      if (found->is_structured()) {
        return absl::InvalidArgumentError(
            absl::StrCat("column '", column, "': expected a string, number or boolean, found ", found->type_name()));
      }
      label = found->is_string() ? found->get<std::string>() : found->dump();
    }
    row->labels.push_back(std::move(label));
  }
  return absl::OkStatus();
}

}  // namespace thimble
