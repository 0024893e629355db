// The memory plan against a replay of value lifetimes: nothing alive overlaps, in-place only where nobody minds, and
// the peak close to the lower bound.
#include "trainer/memory_plan.h"

#include <algorithm>
#include <cstdio>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/trainer/tiny_model.h"
#include "trainer/backward.h"

namespace thimble {
namespace {

struct RandomTape {
  Store store;
  Tape tape{&store};
  std::vector<ValueId> pinned;
};

int64_t Random(std::mt19937* random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(*random);
}

// Steps read mostly young values; sizes come from few classes, as in a decoder, or are all different.
void FillRandomTape(uint32_t seed, RandomTape* out) {
  std::mt19937 random(seed);
  Tape& tape = out->tape;
  const int64_t steps = Random(&random, 1, 120);
  const bool few_sizes = Random(&random, 0, 1) == 1;
  std::vector<ValueId> values;
  const ValueId input = tape.Input("input", 1, 7, DType::kI32);
  for (int64_t s = 0; s < steps; ++s) {
    Step step;
    step.op = "op";
    if (s == 0) step.inputs.push_back(input);
    const int64_t reads = values.empty() ? 0 : Random(&random, 1, 3);
    for (int64_t i = 0; i < reads; ++i) {
      const int64_t age = std::min<int64_t>(Random(&random, 0, Random(&random, 0, 40)), std::ssize(values) - 1);
      step.inputs.push_back(values[values.size() - 1 - age]);
    }
    const int64_t writes = Random(&random, 1, 3);
    for (int64_t o = 0; o < writes; ++o) {
      int64_t cols = few_sizes ? int64_t{16} << (2 * Random(&random, 0, 4)) : Random(&random, 0, 5000);
      const bool in_place = !step.inputs.empty() && Random(&random, 0, 1) == 1;
      if (in_place) {
        const int from = static_cast<int>(Random(&random, 0, std::ssize(step.inputs) - 1));
        if (Random(&random, 0, 4) > 0) cols = tape.value(step.inputs[from]).cols;
        step.in_place.emplace_back(static_cast<int>(o), from);
      }
      step.outputs.push_back(tape.Activation(absl::StrCat("v", s, ".", o), 1, cols));
    }
    if (Random(&random, 0, 2) == 0) step.scratch_bytes = Random(&random, 1, 20000);
    for (ValueId id : step.outputs) {
      values.push_back(id);
      if (Random(&random, 0, 19) == 0) out->pinned.push_back(id);
    }
    tape.Append(std::move(step));
  }
}

struct Lifetime {
  int32_t first = 0;
  int32_t last = 0;
};

std::vector<Lifetime> LifetimesOf(const Tape& tape, const std::vector<ValueId>& pinned) {
  std::vector<Lifetime> lives(tape.values().size());
  const int32_t steps = static_cast<int32_t>(tape.steps().size());
  for (int32_t s = 0; s < steps; ++s) {
    for (ValueId id : tape.steps()[s].inputs) lives[id].last = s;
    for (ValueId id : tape.steps()[s].outputs) lives[id] = {s, s};
  }
  for (ValueId id : pinned) lives[id].last = steps;  // read after the last step
  return lives;
}

// Whether step s may write `out` over `in`, from the tape alone.
bool MayTakeOver(const Tape& tape, const std::vector<Lifetime>& lives, int32_t s, ValueId out, ValueId in) {
  const Step& step = tape.steps()[s];
  const bool listed = std::any_of(step.in_place.begin(), step.in_place.end(), [&](const std::pair<int, int>& pair) {
    return step.outputs[pair.first] == out && step.inputs[pair.second] == in;
  });
  return listed && lives[in].last == s && std::count(step.inputs.begin(), step.inputs.end(), in) == 1;
}

struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  ValueId value = kNoValue;  // kNoValue: scratch
};

// Walks the steps with all ranges in use and measures the arena; every rule that breaks is a test failure.
void ExpectSound(const Tape& tape, const std::vector<ValueId>& pinned, const MemoryPlan& plan) {
  const std::vector<Lifetime> lives = LifetimesOf(tape, pinned);
  int64_t peak = 0;
  int64_t most_alive = 0;
  for (int32_t s = 0; s < static_cast<int32_t>(tape.steps().size()); ++s) {
    std::vector<Range> ranges;
    for (ValueId id = 0; id < static_cast<ValueId>(tape.values().size()); ++id) {
      if (tape.value(id).placement != Placement::kActivation || lives[id].first > s || lives[id].last < s) continue;
      const PlannedBuffer& buffer = plan.buffers[plan.buffer_of_value[id]];
      ASSERT_EQ(buffer.offset % 64, 0);
      ASSERT_GE(buffer.bytes, tape.value(id).bytes());
      ranges.push_back({buffer.offset, buffer.offset + buffer.bytes, id});
    }
    if (tape.steps()[s].scratch_bytes > 0) {
      const PlannedBuffer& buffer = plan.buffers[plan.scratch_of_step[s]];
      ASSERT_EQ(buffer.offset % 64, 0);
      ASSERT_GE(buffer.bytes, tape.steps()[s].scratch_bytes);
      ranges.push_back({buffer.offset, buffer.offset + buffer.bytes, kNoValue});
    }
    int64_t alive = 0;
    for (size_t i = 0; i < ranges.size(); ++i) {
      peak = std::max(peak, ranges[i].end);
      bool shared = false;
      for (size_t j = 0; j < i; ++j) {
        const Range& a = ranges[i];
        const Range& b = ranges[j];
        if (a.begin >= b.end || b.begin >= a.end) continue;
        ASSERT_TRUE(a.value != kNoValue && b.value != kNoValue) << "scratch of step " << s << " overlaps";
        ASSERT_TRUE((MayTakeOver(tape, lives, s, a.value, b.value) || MayTakeOver(tape, lives, s, b.value, a.value)) &&
                    a.begin == b.begin && a.end == b.end)
            << "step " << s << ": " << tape.value(a.value).name << " and " << tape.value(b.value).name << " overlap";
        ASSERT_FALSE(shared) << "three values in one place";
        shared = true;
      }
      if (!shared) alive += ranges[i].end - ranges[i].begin;
    }
    EXPECT_EQ(plan.live_bytes[s], alive) << "step " << s;
    most_alive = std::max(most_alive, alive);
  }
  EXPECT_EQ(plan.peak_bytes, peak);
  EXPECT_EQ(plan.lower_bound_bytes, most_alive);
  EXPECT_GE(plan.peak_bytes, plan.lower_bound_bytes);
}

TEST(MemoryPlanTest, RandomTapesNeverOverlapAndStayNearTheLowerBound) {
  std::vector<double> ratios;
  for (uint32_t seed = 0; seed < 400; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    RandomTape random;
    FillRandomTape(seed, &random);
    const MemoryPlan plan = PlanMemory(random.tape, random.pinned);
    ExpectSound(random.tape, random.pinned, plan);
    if (HasFatalFailure()) return;
    if (plan.lower_bound_bytes > 0) {
      ratios.push_back(static_cast<double>(plan.peak_bytes) / static_cast<double>(plan.lower_bound_bytes));
    }
  }
  std::sort(ratios.begin(), ratios.end());
  std::printf("peak / lower bound of %zu random tapes: median %.3f, 90%% %.3f, 99%% %.3f, greatest %.3f\n",
              ratios.size(), ratios[ratios.size() / 2], ratios[ratios.size() * 9 / 10],
              ratios[ratios.size() * 99 / 100], ratios.back());
  EXPECT_LE(ratios.back(), 1.25);
}

// One step that writes y, in place of x where the plan lets it; `later` reads x afterwards.
struct InPlaceCase {
  bool read_later = false;
  bool pinned = false;
  bool twice = false;
  int64_t out_cols = 100;
};

bool HandedOn(const InPlaceCase& given) {
  Store store;
  Tape tape(&store);
  const ValueId x = tape.Activation("x", 1, 100);
  const ValueId y = tape.Activation("y", 1, given.out_cols);
  Step make;
  make.op = "make";
  make.outputs = {x};
  tape.Append(make);
  Step step;
  step.op = "in_place";
  step.inputs = {x};
  if (given.twice) step.inputs.push_back(x);
  step.outputs = {y};
  step.in_place = {{0, 0}};
  tape.Append(step);
  if (given.read_later) {
    Step later;
    later.op = "later";
    later.inputs = {x};
    tape.Append(later);
  }
  std::vector<ValueId> pinned = {y};
  if (given.pinned) pinned.push_back(x);
  const MemoryPlan plan = PlanMemory(tape, pinned);
  ExpectSound(tape, pinned, plan);
  return plan.buffer_of_value[x] == plan.buffer_of_value[y];
}

TEST(MemoryPlanTest, HandsAnInputOnOnlyWhenNobodyNeedsItAnyMore) {
  EXPECT_TRUE(HandedOn({}));
  EXPECT_FALSE(HandedOn({.read_later = true}));
  EXPECT_FALSE(HandedOn({.pinned = true})) << "even by the last step: it is read after the run";
  EXPECT_FALSE(HandedOn({.twice = true}));
  EXPECT_FALSE(HandedOn({.out_cols = 50}));
}

TEST(MemoryPlanTest, EmptyTapeAndValuesThatAreNeverRead) {
  Store store;
  Tape tape(&store);
  EXPECT_EQ(PlanMemory(tape, {}).peak_bytes, 0);
  for (int i = 0; i < 3; ++i) {
    Step step;
    step.op = "op";
    step.outputs = {tape.Activation(absl::StrCat("v", i), 1, 16)};
    tape.Append(step);
  }
  EXPECT_EQ(PlanMemory(tape, {}).peak_bytes, 64) << "each lives at its own step only";
  EXPECT_EQ(PlanMemory(tape, {0, 1}).peak_bytes, 192);
}

// SmolLM2-135M's shape: plans take no memory, whatever the size of the model.
DecoderConfig RealConfig() {
  DecoderConfig config = TinyConfig();
  config.hidden_dim = 576;
  config.num_layers = 30;
  config.num_heads = 9;
  config.num_kv_heads = 3;
  config.head_dim = 64;
  config.intermediate_dim = 1536;
  config.vocab_size = 49152;
  config.tie_embeddings = true;
  config.windows.assign(config.num_layers, 0);
  return config;
}

TEST(MemoryPlanTest, DecoderTapesStayNearTheLowerBound) {
  for (const char* method : {"full", "lora", "dora"}) {
    for (SavePolicy policy : {SavePolicy::kKeep, SavePolicy::kRecompute}) {
      const bool full = method == std::string("full");
      const AdapterOptions adapter = full ? AdapterOptions() : TinyAdapter(method == std::string("dora"), 0.1);
      Store store;
      const auto decoder = DeclareDecoder(RealConfig(), adapter, full, Compute::kF32, PlainF32, &store);
      ASSERT_TRUE(decoder.ok()) << decoder.status();
      EngineOptions options;
      options.activations = policy;
      options.max_tokens = 1024;
      DeclareOptimizerState(options.optimizer, &store);
      const Engine engine(&*decoder, &store, options);
      const double ratio =
          static_cast<double>(engine.arena_bytes()) / static_cast<double>(engine.arena_lower_bound_bytes());
      const PlannedTape& largest = engine.largest();
      std::printf("%s, %s: %zu steps, peak %.1f MiB, %.4f of the lower bound\n", method,
                  policy == SavePolicy::kKeep ? "keep" : "recompute", largest.tape.steps().size(),
                  static_cast<double>(engine.arena_bytes()) / (1 << 20), ratio);
      EXPECT_LE(ratio, 1.1);
      ExpectSound(largest.tape, largest.losses, largest.plan.device);
    }
  }
}

}  // namespace
}  // namespace thimble
