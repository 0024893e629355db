// The quickstart's shipped examples keep their promises: enough rows and kinds of task, held-out stories that share no
// sentences with the training ones, balanced answers in a fixed form. make_stories.py --check proves more (names).
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace thimble {
namespace {

struct Example {
  std::string story, question, answer;
  std::string Task() const { return answer.substr(0, answer.find(':')); }
};

std::vector<Example> ReadExamples(const std::string& name) {
  std::ifstream file(std::string(THIMBLE_SOURCE_DIR) + "/examples/quickstart/" + name);
  std::vector<Example> examples;
  for (std::string line; std::getline(file, line);) {
    const nlohmann::json messages = nlohmann::json::parse(line)["messages"];
    const std::string user = messages[0]["content"];
    const size_t cut = user.rfind('\n');
    examples.push_back({user.substr(0, cut), user.substr(cut + 1), messages[1]["content"]});
  }
  return examples;
}

// The story's sentences; quotation marks are not part of them.
std::set<std::string> Sentences(const std::vector<Example>& examples) {
  std::set<std::string> sentences;
  for (const Example& example : examples) {
    std::string sentence;
    for (char c : example.story) {
      if (c == '"' || (c == ' ' && sentence.empty())) continue;
      sentence += c;
      if (c == '.' || c == '!' || c == '?') {
        sentences.insert(sentence);
        sentence.clear();
      }
    }
    EXPECT_EQ(sentence, "") << "a story that does not end with a sentence: " << example.story;
  }
  return sentences;
}

std::set<std::string> CapitalizedWordsInside(const std::vector<Example>& examples) {
  std::set<std::string> names;
  for (const std::string& sentence : Sentences(examples)) {
    std::istringstream words(sentence);
    std::string word;
    words >> word;  // A sentence's first word is capitalized whatever it is.
    while (words >> word) {
      while (!word.empty() && std::ispunct(static_cast<unsigned char>(word.back()))) word.pop_back();
      if (!word.empty() && std::isupper(static_cast<unsigned char>(word[0])) && word != "I") names.insert(word);
    }
  }
  return names;
}

template <typename T>
std::vector<T> Shared(const std::set<T>& a, const std::set<T>& b) {
  std::vector<T> shared;
  for (const T& x : a) {
    if (b.count(x) > 0) shared.push_back(x);
  }
  return shared;
}

TEST(QuickstartExamplesTest, EnoughExamplesOfEnoughTasks) {
  for (const auto& [name, least] : std::map<std::string, size_t>{{"train.jsonl", 1000}, {"heldout.jsonl", 200}}) {
    const std::vector<Example> examples = ReadExamples(name);
    EXPECT_GE(examples.size(), least) << name;
    std::set<std::string> tasks, prompts;
    for (const Example& example : examples) {
      tasks.insert(example.Task());
      prompts.insert(example.story + "\n" + example.question);
      EXPECT_THAT(example.answer, testing::MatchesRegex("[A-Z][a-z]+: [a-z]+\\."));
    }
    EXPECT_GE(tasks.size(), 5u) << name;
    EXPECT_EQ(prompts.size(), examples.size()) << name << " holds an example twice";
  }
}

TEST(QuickstartExamplesTest, HeldOutStoriesShareNoSentenceAndNoName) {
  const std::vector<Example> train = ReadExamples("train.jsonl"), heldout = ReadExamples("heldout.jsonl");
  EXPECT_THAT(Shared(Sentences(train), Sentences(heldout)), testing::IsEmpty());
  EXPECT_THAT(CapitalizedWordsInside(heldout), testing::Contains("Oscar"));
  EXPECT_THAT(Shared(CapitalizedWordsInside(train), CapitalizedWordsInside(heldout)), testing::IsEmpty());
}

TEST(QuickstartExamplesTest, NoTaskHasADominantAnswer) {
  for (const std::string name : {"train.jsonl", "heldout.jsonl"}) {
    std::map<std::string, std::map<std::string, int>> answers;
    std::map<std::string, int> rows;
    for (const Example& example : ReadExamples(name)) {
      ++answers[example.Task()][example.answer];
      ++rows[example.Task()];
    }
    for (const auto& [task, counts] : answers) {
      for (const auto& [answer, count] : counts) {
        EXPECT_LE(count * static_cast<int>(counts.size()), rows[task] * 1.15 + 3) << name << ": " << answer;
      }
    }
  }
}

}  // namespace
}  // namespace thimble
