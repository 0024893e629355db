// Recognition of published chat templates by their marks.
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "data/chat_format.h"
#include "ops/check.h"

namespace thimble {
namespace {

constexpr const char* kNames[] = {"chatml", "llama3", "mistral", "zephyr", "alpaca", "plain"};
constexpr const char* kNameList = "chatml, llama3, mistral, zephyr, alpaca, plain";

// Stanford Alpaca's text. Source: tatsu-lab/stanford_alpaca, train.py.
constexpr const char* kAlpacaSystem =
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.";

class Template {
 public:
  explicit Template(std::string_view text) : text_(text) {}
  bool Has(std::string_view mark) const { return text_.find(mark) != std::string_view::npos; }
  bool HasAny(std::initializer_list<std::string_view> marks) const {
    for (const std::string_view mark : marks) {
      if (Has(mark)) return true;
    }
    return false;
  }
  std::string DefaultSystem() const;

 private:
  std::string_view text_;
};

// The literal that a chatml template writes for rows without a system text: between "<|im_start|>system\n" and
// "<|im_end|>" with no quote (hence no expression) between, or what `set system_message = '...'` holds (Qwen 2).
std::string Template::DefaultSystem() const {
  constexpr std::string_view kOpen = "<|im_start|>system";
  for (size_t at = text_.find(kOpen); at != std::string_view::npos; at = text_.find(kOpen, at + 1)) {
    std::string_view rest = text_.substr(at + kOpen.size());
    if (rest.substr(0, 2) == "\\n") {
      rest.remove_prefix(2);
    } else if (rest.substr(0, 1) == "\n") {
      rest.remove_prefix(1);
    } else {
      continue;
    }
    const std::string_view literal = rest.substr(0, rest.find("<|im_end|>"));
    if (!literal.empty() && literal.find_first_of("'\"{}\\") == std::string_view::npos) return std::string(literal);
  }
  constexpr std::string_view kSet = "set system_message = '";
  const size_t set = text_.find(kSet);
  if (set == std::string_view::npos) return "";
  const std::string_view rest = text_.substr(set + kSet.size());
  return std::string(rest.substr(0, rest.find('\'')));
}

ChatFormat DefaultFormat(ChatFormatKind kind, const ModelTokens& tokens) {
  ChatFormat format;
  format.kind = kind;
  format.end_of_turn = kind == ChatFormatKind::kChatml   ? "<|im_end|>"
                       : kind == ChatFormatKind::kLlama3 ? "<|eot_id|>"
                                                         : tokens.eos_token;
  if (kind == ChatFormatKind::kAlpaca) format.default_system = kAlpacaSystem;
  format.prints_bos = kind == ChatFormatKind::kLlama3 || kind == ChatFormatKind::kMistral;
  return format;
}

bool IsChatml(const Template& text) {
  if (!text.Has("<|im_start|>") || !text.Has("<|im_end|>")) return false;
  // Phi 4; SmolLM 3; LFM 2.5; Hermes with tools: same marks, other rules.
  if (text.HasAny(
          {"<|im_sep|>", "## Metadata", "keep_past_thinking", "function calling AI model", "| trim", "|trim"})) {
    return false;
  }
  return !text.Has("</think>") || text.Has("last_query_index");
}

absl::Status NoneOfThese() {
  return absl::InvalidArgumentError(absl::StrCat(
      "the model's chat template is none of those that are recognised; set the chat format to one of ", kNameList));
}

}  // namespace

const char* ChatFormatName(ChatFormatKind kind) { return kNames[static_cast<int>(kind)]; }

absl::StatusOr<ChatFormat> RecogniseChatTemplate(const std::string& chat_template, const ModelTokens& tokens) {
  const Template text(chat_template);
  ChatFormat format;
  if (text.Has("<|start_header_id|>") && text.Has("<|end_header_id|>") && text.Has("<|eot_id|>")) {
    format = DefaultFormat(ChatFormatKind::kLlama3, tokens);
    format.date_block = text.Has("Cutting Knowledge Date");
  } else if (IsChatml(text)) {
    format = DefaultFormat(ChatFormatKind::kChatml, tokens);
    format.default_system = text.DefaultSystem();
    format.reasoning = text.Has("last_query_index");
    format.tool_tags = text.Has("<tool_response>");
    format.prints_bos = text.Has("bos_token");
  } else if (text.Has("<|user|>") && text.Has("<|assistant|>") && text.Has("eos_token") &&
             !text.HasAny({"<|end|>", "bos_token", "| trim", "|trim"})) {
    format = DefaultFormat(ChatFormatKind::kZephyr, tokens);
  } else if (text.Has("[INST] ") && text.Has(" [/INST]") && text.Has("eos_token") && !text.Has("<<SYS>>")) {
    format = DefaultFormat(ChatFormatKind::kMistral, tokens);
    format.space_after_eos = text.HasAny({"eos_token + ' '", "eos_token + \" \"", "eos_token ~ ' '"});
    format.space_before_answer = text.HasAny({"' ' + message['content']", "\" \" + message[\"content\"]"});
  } else if (text.Has("### Instruction:") && text.Has("### Response:") && text.Has("eos_token")) {
    format = DefaultFormat(ChatFormatKind::kAlpaca, tokens);
    format.prints_bos = text.Has("bos_token");
  } else {
    return NoneOfThese();
  }
  format.description =
      absl::StrCat("chat format ", ChatFormatName(format.kind), ", recognised from the model's template");
  return format;
}

absl::StatusOr<ChatFormat> MakeChatFormat(const std::string& name, const ModelTokens& tokens,
                                          const Tokenizer& tokenizer) {
  ChatFormat format;
  if (name == "auto") {
    if (tokens.chat_template.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the model has no chat template; set the chat format to one of ", kNameList));
    }
    ASSIGN_OR_RETURN(format, RecogniseChatTemplate(tokens.chat_template, tokens));
  } else {
    int kind = -1;
    for (int i = 0; i < 6; ++i) kind = name == kNames[i] ? i : kind;
    if (kind < 0) {
      return absl::InvalidArgumentError(absl::StrCat("unknown chat format '", name, "'; allowed: auto, ", kNameList));
    }
    format = DefaultFormat(static_cast<ChatFormatKind>(kind), tokens);
    const absl::StatusOr<ChatFormat> own = RecogniseChatTemplate(tokens.chat_template, tokens);
    if (own.ok() && own->kind == format.kind) format = *own;
    format.description = absl::StrCat("chat format ", name, ", as given");
  }
  const bool needs_end = format.kind != ChatFormatKind::kPlain && format.kind != ChatFormatKind::kAlpaca;
  if (format.end_of_turn.empty() ? needs_end : !tokenizer.TokenId(format.end_of_turn).has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("chat format ", ChatFormatName(format.kind), " ends turns with ",
                     format.end_of_turn.empty() ? "the model's EOS token" : format.end_of_turn,
                     ", which this tokenizer lacks; choose another chat format: ", kNameList));
  }
  if (!format.default_system.empty()) {
    absl::StrAppend(&format.description, "; system text of rows without one: \"", format.default_system, "\"");
  }
  return format;
}

std::string ChatFormat::Fingerprint() const {
  return absl::StrCat(ChatFormatName(kind), "|", default_system, "|", int{reasoning}, int{tool_tags}, int{date_block},
                      int{space_after_eos}, int{space_before_answer}, int{prints_bos}, "|", date, "|", end_of_turn);
}

}  // namespace thimble
