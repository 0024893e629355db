// Chat formats against jinja2's rendering of the published templates; recognition and refusal of templates.
#include "data/chat_format.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "data/file.h"
#include "nlohmann/json.hpp"
#include "tests/data/byte_tokenizer.h"
#include "tests/data/test_folder.h"

namespace thimble {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

Json Goldens() { return Json::parse(*ReadFile(THIMBLE_SOURCE_DIR "/tests/golden/data/chat_goldens.json")); }

ModelTokens TokensOf(const Json& model) {
  ModelTokens tokens;
  tokens.bos_token = model["bos"];
  tokens.eos_token = model["eos"];
  tokens.chat_template = model["template"];
  return tokens;
}

Row MessagesRow(const Json& messages) {
  Row row;
  row.form = RowForm::kMessages;
  for (const Json& message : messages) row.messages.push_back({message["role"], message["content"]});
  return row;
}

TEST(ChatFormatTest, RendersAsJinja2DoesForEveryGolden) {
  const Json goldens = Goldens();
  ASSERT_GE(goldens["cases"].size(), 100u);
  for (const Json& golden : goldens["cases"]) {
    const ModelTokens tokens = TokensOf(goldens["templates"][golden["template"].get<std::string>()]);
    const auto format = RecogniseChatTemplate(tokens.chat_template, tokens);
    ASSERT_TRUE(format.ok()) << golden["template"] << format.status();
    const Row row = MessagesRow(golden["messages"]);
    const auto rendered = golden["generate"].get<bool>() ? RenderPrompt(*format, row) : RenderRow(*format, tokens, row);
    ASSERT_TRUE(rendered.ok()) << rendered.status();
    EXPECT_EQ((rendered->bos ? tokens.bos_token : "") + rendered->Text(), golden["text"].get<std::string>())
        << golden["template"] << " " << golden["messages"];
  }
}

TEST(ChatFormatTest, TargetsAreAnswersWithTheirEndOfTurn) {
  const Json goldens = Goldens();
  for (const auto& item : goldens["templates"].items()) {
    const ModelTokens tokens = TokensOf(item.value());
    const auto format = RecogniseChatTemplate(tokens.chat_template, tokens);
    ASSERT_TRUE(format.ok());
    Row row = MessagesRow(Json::parse(R"([{"role": "user", "content": "U1"}, {"role": "assistant", "content": "A1"},
                                          {"role": "user", "content": "U2"}, {"role": "assistant", "content": "A2"}])"));
    const auto rendered = RenderRow(*format, tokens, row);
    ASSERT_TRUE(rendered.ok());
    std::string targets;
    for (const RenderedPiece& piece : rendered->pieces) targets += piece.is_target ? piece.text : "";
    const std::string think = format->reasoning ? "<think>\n\n</think>\n\n" : "";
    // What the prompt's template does not write, the model must.
    const std::string space = format->space_before_answer ? " " : "";
    EXPECT_EQ(targets, space + "A1" + format->end_of_turn + think + space + "A2" + format->end_of_turn) << item.key();
  }
}

TEST(ChatFormatTest, RecognisesKindAndSwitches) {
  const Json goldens = Goldens();
  const auto recognise = [&](const char* name) {
    const ModelTokens tokens = TokensOf(goldens["templates"][name]);
    return *RecogniseChatTemplate(tokens.chat_template, tokens);
  };
  EXPECT_EQ(recognise("qwen2").default_system, "You are a helpful assistant.");
  EXPECT_EQ(recognise("qwen2.5").default_system,
            "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.");
  EXPECT_EQ(recognise("qwen3").default_system, "");
  EXPECT_TRUE(recognise("qwen3").reasoning);
  EXPECT_EQ(recognise("smollm2").default_system,
            "You are a helpful AI assistant named SmolLM, trained by Hugging Face");
  EXPECT_FALSE(recognise("llama3").date_block);
  EXPECT_TRUE(recognise("llama3.1").date_block);
  EXPECT_TRUE(recognise("mistral0.1").space_after_eos);
  EXPECT_FALSE(recognise("mistral0.2").space_after_eos);
  EXPECT_EQ(recognise("zephyr").kind, ChatFormatKind::kZephyr);
  EXPECT_EQ(recognise("alpaca").kind, ChatFormatKind::kAlpaca);
}

TEST(ChatFormatTest, RefusesTemplatesThatFollowOtherRules) {
  const std::string folder = AssetsFolder() + "tokenizers/";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << "no test assets in " << folder;
  std::map<std::string, std::string> found;
  for (const auto& file : std::filesystem::directory_iterator(folder + "chat_templates")) {
    const auto format = RecogniseChatTemplate(*ReadFile(file.path().string()), {});
    found[file.path().filename().string()] = format.ok() ? ChatFormatName(format->kind) : "refused";
  }
  for (const char* name : {"gemma", "phi-3-mini", "phi-4", "qwen2", "qwen3", "llama-3"}) {
    const Json config = Json::parse(*ReadFile(folder + name + "/tokenizer_config.json"));
    const auto format = RecogniseChatTemplate(config["chat_template"], {});
    found[name] = format.ok() ? ChatFormatName(format->kind) : "refused";
  }
  const std::map<std::string, std::string> expected = {{"HuggingFaceTB-SmolLM3-3B.jinja", "refused"},
                                                       {"LFM2.5-Instruct.jinja", "refused"},
                                                       {"NVIDIA-Nemotron-Nano-v2.jinja", "refused"},
                                                       {"NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja", "refused"},
                                                       {"Qwen-Qwen2.5-7B-Instruct.jinja", "chatml"},
                                                       {"Qwen-Qwen3-0.6B.jinja", "chatml"},
                                                       {"deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja", "refused"},
                                                       {"google-gemma-2-2b-it.jinja", "refused"},
                                                       {"meta-llama-Llama-3.1-8B-Instruct.jinja", "llama3"},
                                                       {"meta-llama-Llama-3.2-3B-Instruct.jinja", "llama3"},
                                                       {"microsoft-Phi-3.5-mini-instruct.jinja", "refused"},
                                                       {"mistralai-Mistral-Nemo-Instruct-2407.jinja", "refused"},
                                                       {"openai-gpt-oss-120b.jinja", "refused"},
                                                       {"gemma", "refused"},
                                                       {"phi-3-mini", "refused"},
                                                       {"phi-4", "refused"},
                                                       {"qwen2", "chatml"},
                                                       {"qwen3", "chatml"},
                                                       {"llama-3", "llama3"}};
  EXPECT_EQ(found, expected);
}

// The data set's own column "text" is Stanford Alpaca's rendering.
TEST(ChatFormatTest, AlpacaRowsAreStanfords) {
  const std::string path = AssetsFolder() + "datasets/alpaca_tiny.json";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "no test assets: " << path;
  const auto tokenizer = MakeByteTokenizer({"</s>"});
  ASSERT_NE(tokenizer, nullptr);
  ModelTokens tokens;
  tokens.eos_token = "</s>";
  tokens.eos_id = 256;
  const auto format = MakeChatFormat("alpaca", tokens, *tokenizer);
  ASSERT_TRUE(format.ok()) << format.status();
  const Json rows = Json::parse(*ReadFile(path));
  DatasetOptions options;
  options.files = {path};
  auto reader = DatasetReader::Open(options);
  ASSERT_TRUE(reader.ok());
  Row row;
  for (const Json& json : rows) {
    ASSERT_TRUE((*reader)->Next(&row).ok());
    const auto rendered = RenderRow(*format, tokens, row);
    ASSERT_TRUE(rendered.ok());
    EXPECT_EQ(rendered->Text(), json["text"].get<std::string>() + "</s>");
  }
}

TEST(ChatFormatTest, PlainJoinsPromptAndCompletionDirectly) {
  ModelTokens tokens;
  tokens.eos_token = "</s>";
  const auto tokenizer = MakeByteTokenizer({"</s>"});
  const auto format = MakeChatFormat("plain", tokens, *tokenizer);
  ASSERT_TRUE(format.ok());
  Row row = MessagesRow(Json::parse(R"([{"role": "user", "content": "2+2="}, {"role": "assistant", "content": "4"}])"));
  EXPECT_EQ(RenderRow(*format, tokens, row)->Text(), "2+2=\n4</s>");
  row.form = RowForm::kPromptCompletion;
  EXPECT_EQ(RenderRow(*format, tokens, row)->Text(), "2+2=4</s>");
  row.messages.pop_back();
  EXPECT_EQ(RenderPrompt(*format, row)->Text(), "2+2=");
}

TEST(ChatFormatTest, ErrorsAskForANameOrAToken) {
  const auto tokenizer = MakeByteTokenizer({"</s>"});
  ModelTokens tokens;
  EXPECT_THAT(MakeChatFormat("auto", tokens, *tokenizer).status().message(), HasSubstr("no chat template; set"));
  tokens.chat_template = "{{ messages }}";
  EXPECT_THAT(MakeChatFormat("auto", tokens, *tokenizer).status().message(), HasSubstr("chatml, llama3, mistral"));
  EXPECT_THAT(MakeChatFormat("chatlm", tokens, *tokenizer).status().message(),
              HasSubstr("unknown chat format 'chatlm'"));
  EXPECT_THAT(MakeChatFormat("chatml", tokens, *tokenizer).status().message(), HasSubstr("<|im_end|>"));
  EXPECT_THAT(MakeChatFormat("zephyr", tokens, *tokenizer).status().message(), HasSubstr("EOS"));
  EXPECT_TRUE(MakeChatFormat("plain", tokens, *tokenizer).ok());
  tokens.eos_token = "</s>";
  const auto mistral = MakeChatFormat("mistral", tokens, *tokenizer);
  ASSERT_TRUE(mistral.ok());
  const Row row = MessagesRow(Json::parse(R"([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])"));
  EXPECT_THAT(RenderRow(*mistral, tokens, row).status().message(), HasSubstr("must alternate"));
  const Row tool = MessagesRow(Json::parse(R"([{"role": "tool", "content": "a"}])"));
  EXPECT_FALSE(RenderRow(*MakeChatFormat("alpaca", tokens, *tokenizer), tokens, tool).ok());
  EXPECT_FALSE(RenderRow(*MakeChatFormat("zephyr", tokens, *tokenizer), tokens, tool).ok());
}

}  // namespace
}  // namespace thimble
