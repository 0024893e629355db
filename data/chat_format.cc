#include "data/chat_format.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "data/chat_render.h"
#include "ops/check.h"

namespace thimble {
namespace {

bool StartsWith(std::string_view text, std::string_view start) { return text.substr(0, start.size()) == start; }
bool EndsWith(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// Builds the pieces of one conversation.
class Renderer {
 public:
  Renderer(const ChatFormat& format, const Row& row) : format_(format), row_(row) {}

  absl::StatusOr<Rendered> Render();

 private:
  void Add(std::string text) { rendered_.pieces.push_back({std::move(text), false, false}); }
  // Assistant text with its end-of-turn token: what the model learns to write.
  void AddAnswer(std::string text) {
    rendered_.last_answer = static_cast<int64_t>(rendered_.pieces.size());
    rendered_.pieces.push_back({std::move(text), true, false});
    if (!format_.end_of_turn.empty()) rendered_.pieces.push_back({format_.end_of_turn, true, true});
  }
  void Chatml();
  void ChatmlTool(size_t i);
  std::string ChatmlAnswer(size_t i) const;
  void Llama3();
  absl::Status Mistral();
  absl::Status Zephyr();
  absl::Status Alpaca();
  void Plain();
  // Takes a leading system message away and returns its text, else the default.
  std::string TakeSystem();
  std::string UserText(size_t i) const;
  bool IsAssistant(size_t i) const {
    return row_.messages[i].role == "assistant" || row_.messages[i].role == "function_call";
  }
  absl::Status NoPlaceFor(const std::string& what) const {
    return absl::InvalidArgumentError(
        absl::StrCat("chat format ", ChatFormatName(format_.kind), " has no place for ", what));
  }

  const ChatFormat& format_;
  const Row& row_;
  size_t first_ = 0;  // first message after the system text
  Rendered rendered_;
};

std::string Renderer::TakeSystem() {
  if (row_.messages.empty() || row_.messages[0].role != "system") return format_.default_system;
  first_ = 1;
  return row_.messages[0].content;
}

// An alpaca row's input follows its instruction, as LLaMA-Factory joins them.
std::string Renderer::UserText(size_t i) const {
  const std::string& text = row_.messages[i].content;
  return row_.input.empty() ? text : absl::StrCat(text, "\n", row_.input);
}

// Qwen 3: answers after the last user query carry their reasoning (the last one in any case), earlier ones lose it.
std::string Renderer::ChatmlAnswer(size_t i) const {
  std::string content = row_.messages[i].content;
  if (row_.messages[i].role == "function_call" && format_.tool_tags) {
    content = absl::StrCat("<tool_call>\n", content, "\n</tool_call>");
  }
  if (!format_.reasoning) return content;
  size_t last_query = row_.messages.size() - 1;
  for (size_t q = row_.messages.size(); q-- > 0;) {
    const Message& message = row_.messages[q];
    if (message.role == "user" &&
        !(StartsWith(message.content, "<tool_response>") && EndsWith(message.content, "</tool_response>"))) {
      last_query = q;
      break;
    }
  }
  std::string reasoning;
  if (content.find("</think>") != std::string::npos) {
    reasoning = content.substr(0, content.find("</think>"));
    reasoning.erase(reasoning.find_last_not_of('\n') + 1);
    const size_t open = reasoning.rfind("<think>");
    if (open != std::string::npos) reasoning.erase(0, open + 7);
    reasoning = StripNewlinesLeft(reasoning);
    content = StripNewlinesLeft(content.substr(content.rfind("</think>") + 8));
  }
  const bool last = i + 1 == row_.messages.size();
  if (i <= last_query || (!last && reasoning.empty())) return content;
  return absl::StrCat("<think>\n", StripNewlines(reasoning), "\n</think>\n\n", StripNewlinesLeft(content));
}

// Qwen 2.5 and 3: results of calls are one user turn.
void Renderer::ChatmlTool(size_t i) {
  const std::vector<Message>& messages = row_.messages;
  if (i == 0 || messages[i - 1].role != "tool") Add("<|im_start|>user");
  Add(absl::StrCat("\n<tool_response>\n", messages[i].content, "\n</tool_response>"));
  if (i + 1 == messages.size() || messages[i + 1].role != "tool") Add("<|im_end|>\n");
}

void Renderer::Chatml() {
  const std::string system = TakeSystem();
  if (first_ > 0 || !system.empty()) Add(absl::StrCat("<|im_start|>system\n", system, "<|im_end|>\n"));
  for (size_t i = first_; i < row_.messages.size(); ++i) {
    if (IsAssistant(i)) {
      Add("<|im_start|>assistant\n");
      AddAnswer(ChatmlAnswer(i));
      Add("\n");
    } else if (row_.messages[i].role == "tool" && format_.tool_tags) {
      ChatmlTool(i);
    } else {
      Add(absl::StrCat("<|im_start|>", row_.messages[i].role, "\n", UserText(i), "<|im_end|>\n"));
    }
  }
}

void Renderer::Llama3() {
  const auto header = [](const std::string& role) {
    return absl::StrCat("<|start_header_id|>", role, "<|end_header_id|>\n\n");
  };
  const std::string system = StripSpace(TakeSystem());
  if (format_.date_block) {
    Add(absl::StrCat(header("system"), "Cutting Knowledge Date: December 2023\nToday Date: ", format_.date, "\n\n",
                     system, "<|eot_id|>"));
  } else if (first_ > 0) {
    Add(absl::StrCat(header("system"), system, "<|eot_id|>"));
  }
  for (size_t i = first_; i < row_.messages.size(); ++i) {
    const Message& message = row_.messages[i];
    if (IsAssistant(i)) {
      Add(header("assistant"));
      AddAnswer(StripSpace(message.content));
    } else if (message.role == "tool") {
      Add(absl::StrCat(header("ipython"), JsonString(message.content), "<|eot_id|>"));
    } else {
      Add(absl::StrCat(header(message.role), StripSpace(UserText(i)), "<|eot_id|>"));
    }
  }
}

absl::Status Renderer::Mistral() {
  const std::string system = TakeSystem();
  for (size_t i = first_; i < row_.messages.size(); ++i) {
    const bool user_turn = (i - first_) % 2 == 0;
    if (user_turn != (row_.messages[i].role == "user") || user_turn == IsAssistant(i)) {
      return NoPlaceFor(absl::StrCat("a ", row_.messages[i].role, " message here (message ", i + 1,
                                     "): user and assistant must alternate"));
    }
    if (user_turn) {
      const bool with_system = i == first_ && !system.empty();
      Add(absl::StrCat("[INST] ", with_system ? system : "", with_system ? "\n\n" : "", UserText(i), " [/INST]"));
    } else {
      AddAnswer(absl::StrCat(format_.space_before_answer ? " " : "", row_.messages[i].content));
      if (format_.space_after_eos) Add(" ");
    }
  }
  return absl::OkStatus();
}

absl::Status Renderer::Zephyr() {
  for (size_t i = 0; i < row_.messages.size(); ++i) {
    const Message& message = row_.messages[i];
    if (message.role == "tool") return NoPlaceFor(absl::StrCat("a tool message (message ", i + 1, ")"));
    if (IsAssistant(i)) {
      Add("<|assistant|>\n");
      AddAnswer(message.content);
      Add("\n");
    } else {
      Add(absl::StrCat("<|", message.role, "|>\n", UserText(i)));
      rendered_.pieces.push_back({format_.end_of_turn, false, true});
      Add("\n");
    }
  }
  return absl::OkStatus();
}

absl::Status Renderer::Alpaca() {
  std::string system = TakeSystem();
  if (!row_.input.empty() && first_ == 0) {
    // Stanford's wording for rows with an input.
    system =
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.";
  }
  if (!system.empty()) Add(absl::StrCat(system, "\n\n"));
  for (size_t i = first_; i < row_.messages.size(); ++i) {
    const Message& message = row_.messages[i];
    if (IsAssistant(i)) {
      Add("### Response:\n");
      AddAnswer(message.content);
      if (i + 1 < row_.messages.size()) Add("\n\n");
    } else if (message.role == "user") {
      Add(absl::StrCat("### Instruction:\n", message.content, "\n\n"));
      if (!row_.input.empty()) Add(absl::StrCat("### Input:\n", row_.input, "\n\n"));
    } else {
      return NoPlaceFor(absl::StrCat("a ", message.role, " message (message ", i + 1, ")"));
    }
  }
  return absl::OkStatus();
}

// The contents alone: messages a newline apart; a prompt and its completion, and a text and what goes on from it,
// directly one after the other.
void Renderer::Plain() {
  const bool joined = row_.form == RowForm::kPromptCompletion || row_.form == RowForm::kText;
  for (size_t i = 0; i < row_.messages.size(); ++i) {
    if (i > 0 && !joined) Add("\n");
    if (IsAssistant(i)) {
      AddAnswer(row_.messages[i].content);
    } else {
      Add(UserText(i));
    }
  }
}

absl::StatusOr<Rendered> Renderer::Render() {
  rendered_.bos = format_.prints_bos;
  absl::Status status;
  switch (format_.kind) {
    case ChatFormatKind::kChatml:
      Chatml();
      break;
    case ChatFormatKind::kLlama3:
      Llama3();
      break;
    case ChatFormatKind::kMistral:
      status = Mistral();
      break;
    case ChatFormatKind::kZephyr:
      status = Zephyr();
      break;
    case ChatFormatKind::kAlpaca:
      status = Alpaca();
      break;
    case ChatFormatKind::kPlain:
      Plain();
      break;
  }
  if (!status.ok()) return status;
  return std::move(rendered_);
}

}  // namespace

std::string Rendered::Text() const {
  std::string text;
  for (const RenderedPiece& piece : pieces) text += piece.text;
  return text;
}

Rendered Rendered::Prompt() const {
  CHECK_GE(last_answer, 0);
  Rendered prompt;
  prompt.bos = bos;
  prompt.pieces.assign(pieces.begin(), pieces.begin() + last_answer);
  for (RenderedPiece& piece : prompt.pieces) piece.is_target = false;
  return prompt;
}

absl::StatusOr<Rendered> RenderRow(const ChatFormat& format, const ModelTokens& tokens, const Row& row) {
  if (row.form != RowForm::kText) return Renderer(format, row).Render();
  Rendered rendered;
  rendered.pieces.push_back({row.text, true, false});
  if (!row.continues && !tokens.eos_token.empty()) rendered.pieces.push_back({tokens.eos_token, true, true});
  return rendered;
}

absl::StatusOr<Rendered> RenderPrompt(const ChatFormat& format, Row row) {
  row.messages.push_back({"assistant", ""});
  ASSIGN_OR_RETURN(const Rendered rendered, Renderer(format, row).Render());
  return rendered.Prompt();
}

}  // namespace thimble
