// The training loop takes nothing that the plan does not know: from its second step on it allocates nothing large, and
// what it holds does not grow.
#include "trainer/train_loop.h"

#include <sys/mman.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "recipes/planned_run.h"
#include "recipes/recipe_options.h"
#include "recipes/recipe_reader.h"
#include "tests/allocations/counting_malloc.h"
#include "tests/recipes/random_recipe.h"
#include "tests/recipes/small_model.h"
#include "trainer/init_folder.h"

namespace thimble {
namespace {

constexpr int64_t kSteps = 4;
constexpr int64_t kLetters = 40;
constexpr int64_t kRowTokens = kLetters + 1;
constexpr int64_t kRowsOfABin = 405;
// Four bytes a token alone are a large allocation. Every bin is full: a tape is recorded once for each size.
constexpr int64_t kSeqLen = kRowsOfABin * kRowTokens;

// Lets no compiler leave an allocation out.
void Use(void* pointer) { asm volatile("" : : "r"(pointer) : "memory"); }

TEST(CountingMallocTest, SeesEveryWayToTakeMemory) {
  const HeapUse before = CurrentHeapUse();
  const size_t big = kLargeAllocation + 1;
  {
    const auto plain = std::make_unique<char[]>(big);
    struct alignas(256) Wide {
      char bytes[kLargeAllocation + 256];
    };
    const auto wide = std::make_unique<Wide>();
    const std::vector<float> floats(big);
    void* pointers[] = {std::malloc(big), std::calloc(1, big), std::aligned_alloc(64, big + 63)};
    void* grown = std::realloc(std::malloc(1), big);
    void* mapped = ::mmap(nullptr, big, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    Use(plain.get());
    Use(wide.get());
    Use(grown);
    for (void* pointer : pointers) Use(pointer);
    const HeapUse during = CurrentHeapUse();
    EXPECT_EQ(during.large - before.large, 8);
    EXPECT_GE(during.live_bytes - before.live_bytes, static_cast<int64_t>(7 * big));
    for (void* pointer : pointers) std::free(pointer);
    std::free(grown);
    ::munmap(mapped, big);
  }
  EXPECT_EQ(CurrentHeapUse().live_bytes, before.live_bytes);
}

class TrainLoopAllocationTest : public TestFolder {
 protected:
  void SetUp() override {
    TestFolder::SetUp();
    Dice dice(1);
    std::string rows;
    for (int i = 0; i < 4 * kRowsOfABin; ++i) rows += LetterRow(&dice, kLetters);
    Write("rows.jsonl", rows);
    Write("tokenizer.json", LetterTokenizerJson());
    Write("tokenizer_config.json", R"({"bos_token": "<s>", "eos_token": "</s>"})");
    const std::string config = Write("config.json", R"({"model_type": "qwen3", "hidden_size": 32, "vocab_size": 48,
        "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 16, "max_position_embeddings": 64, "tie_word_embeddings": true})");
    ASSERT_TRUE(InitModelFolder(config, Path("base"), {}).ok());
    std::filesystem::create_directories(Path("run/checkpoints"));
  }

  // Runs the loop and checks what it takes from the end of its first step to that of its last.
  void ExpectSteady(const std::vector<std::string>& settings) {
    SCOPED_TRACE(testing::PrintToString(settings));
    std::vector<std::string> all = {"optimizer.learning_rate=0.001", "training.steps=" + std::to_string(kSteps),
                                    "training.accumulation=2",       "training.micro_batch_size=1",
                                    "data.chat_format=plain",        "data.seq_len=" + std::to_string(kSeqLen)};
    all.insert(all.end(), settings.begin(), settings.end());
    const auto recipe = ParseRecipe(
        "model: {path: base, tokenizer: tokenizer.json}\ncompute: f32\n"
        "data: {train: rows.jsonl}\noutput: {folder: run}\n",
        Path("recipe.yaml"), all);
    ASSERT_TRUE(recipe.ok()) << recipe.status();
    auto run = PlanRun(*recipe);
    ASSERT_TRUE(run.ok()) << run.status();
    ASSERT_TRUE(run->engine->Prepare().ok());
    ASSERT_TRUE(LoadModel(run->model.get()).ok());
    ASSERT_GE(run->data.train_stream->max_batch_tokens() * 4, kLargeAllocation);
    ASSERT_EQ(run->data.train_stream->stats().tokens, 4 * kSeqLen);
    RunLogOptions log_options;
    log_options.folder = Path("run");
    log_options.total_steps = kSteps;
    log_options.progress = std::fopen("/dev/null", "w");
    auto log = RunLog::Open(log_options);
    ASSERT_TRUE(log.ok()) << log.status();
    TrainLoopOptions options = TrainLoopOptionsOf(*recipe, 2);
    options.eval_every = 1;  // for the callback: nothing is held out
    TrainLoop loop(run->engine.get(), run->data.train_stream.get(), nullptr, options, Path("run"), {}, log->get());
    std::vector<HeapUse> uses;
    uses.reserve(2 * kSteps);
    loop.on_evaluation = [&uses](int64_t) {
      uses.push_back(CurrentHeapUse());
      ForgetLargest();
      return absl::OkStatus();
    };
    const auto result = loop.Run({}, nullptr);
    ASSERT_TRUE(result.ok()) << result.status();
    std::fclose(log_options.progress);
    ASSERT_EQ(uses.size(), static_cast<size_t>(kSteps + 1));
    for (size_t step = 2; step < uses.size(); ++step) {
      EXPECT_EQ(uses[step].large, uses[step - 1].large) << "step " << step << ", up to " << uses[step].largest;
      EXPECT_LE(uses[step].live_bytes, uses[1].live_bytes) << "step " << step;
    }
  }
};

TEST_F(TrainLoopAllocationTest, EveryTierAndPolicy) {
  for (const char* policy : {"keep", "recompute", "offload_host", "offload_disk"}) {
    ExpectSteady({"adapter.type=lora", std::string("memory.activations=") + policy});
  }
  ExpectSteady({"adapter.type=lora", "adapter.dropout=0.1", "quantization.format=nf4", "memory.weights=host",
                "memory.activations=recompute", "memory.boundaries=offload_disk", "memory.mlp_tile=2048"});
  ExpectSteady({"adapter.type=dora", "quantization.format=fp4", "memory.weights=disk", "memory.activations=recompute",
                "memory.boundary_span=2"});
  ExpectSteady({"adapter.type=lora", "compute=bf16", "data.packing=windows", "loss.label_smoothing=0.1"});
}

TEST_F(TrainLoopAllocationTest, EveryOptimizer) {
  for (const char* name : {"adamw", "adamw8bit", "lion", "adafactor", "apollo"}) {
    ExpectSteady({std::string("optimizer.name=") + name, "memory.activations=recompute"});
    ExpectSteady({std::string("optimizer.name=") + name, "memory.optimizer_state=disk"});
  }
  ExpectSteady({"training.optimizer_in_backward=true", "training.accumulation=1", "optimizer.max_grad_norm=0",
                "memory.optimizer_state=host", "memory.activations=recompute"});
}

}  // namespace
}  // namespace thimble
