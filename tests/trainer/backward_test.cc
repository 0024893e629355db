// The gradient steps that backward appends: golden text of a one-layer decoder's tape under both policies, and what
// must not be there.
#include "trainer/backward.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gtest/gtest.h"
#include "tests/trainer/tiny_model.h"

namespace thimble {
namespace {

DecoderConfig OneLayer() {
  DecoderConfig config = TinyConfig();
  config.num_layers = 1;
  config.windows = {0};
  return config;
}

AdapterOptions AdapterOn(std::vector<std::string> targets) {
  AdapterOptions adapter = TinyAdapter();
  adapter.targets = std::move(targets);
  return adapter;
}

// A recorded training tape. The store takes no memory: a tape is only a list.
struct Recorded {
  Recorded(const DecoderConfig& config, const AdapterOptions& adapter, SavePolicy policy) {
    auto declared = DeclareDecoder(config, adapter, adapter.rank == 0, Compute::kF32, PlainF32, &store);
    EXPECT_TRUE(declared.ok()) << declared.status();
    decoder = std::move(*declared);
    const DecoderInputs inputs = RecordInputs(&tape, 8);
    const ValueId hidden =
        RecordFinalNorm(&tape, decoder, RecordLayers(&tape, decoder, inputs, {.dropout = true, .caches = {}}).front());
    RecordLinearCrossEntropy(&tape, hidden, tape.Persistent(decoder.head), inputs.targets, 0, {}, /*train=*/true);
    forward_steps = tape.steps().size();
    Backward(&tape, policy).Run();
  }

  // Steps of this op behind the forward pass.
  int CountBackward(const std::string& op) const {
    return static_cast<int>(std::count_if(tape.steps().begin() + static_cast<int64_t>(forward_steps),
                                          tape.steps().end(), [&](const Step& step) { return step.op == op; }));
  }

  Store store;
  Decoder decoder;
  Tape tape{&store};
  size_t forward_steps = 0;
};
// The tape's text with the weights' names cut to their last parts.
std::string ShortNames(const Tape& tape) {
  return absl::StrReplaceAll(tape.DebugString(), {{"model.layers.0.self_attn.", ""},
                                                  {"model.layers.0.mlp.", ""},
                                                  {"model.layers.0.", ""},
                                                  {"layers.0.", ""},
                                                  {".weight", ""}});
}

TEST(BackwardTest, GoldenTapeKeep) {
  const Recorded recorded(OneLayer(), AdapterOn({"v_proj", "down_proj"}), SavePolicy::kKeep);
  EXPECT_EQ("\n" + ShortNames(recorded.tape), R"(
rope_table positions -> rope.cos, rope.sin
embedding ids, model.embed_tokens -> embedding
rms_norm embedding, input_layernorm -> input_norm, input_norm.rstd
matmul_nt input_norm, q_proj -> q
matmul_nt input_norm, k_proj -> k
matmul_nt input_norm, v_proj -> v
lora_down input_norm, v_proj.lora_A -> v.xa
lora_up v, v.xa, v_proj.lora_B -> v+lora
rope q, rope.cos, rope.sin -> q_rope
rope k, rope.cos, rope.sin -> k_rope
attention q_rope, k_rope, v+lora, starts -> attention, attention.lse
matmul_nt attention, o_proj -> o
add embedding, o -> h
rms_norm h, post_attention_layernorm -> post_attention_norm, post_attention_norm.rstd
matmul_nt post_attention_norm, gate_proj -> gate
matmul_nt post_attention_norm, up_proj -> up
swiglu gate, up -> swiglu
matmul_nt swiglu, down_proj -> down
lora_down swiglu, down_proj.lora_A -> down.xa
lora_up down, down.xa, down_proj.lora_B -> down+lora
add h, down+lora -> out
rms_norm out, model.norm -> final_norm, final_norm.rstd
linear_cross_entropy_fused final_norm, lm_head, targets -> loss, lse, dhidden
rms_norm_backward out, model.norm, final_norm.rstd, dhidden -> dout
matmul_nn dout, down_proj -> dswiglu
lora_backward swiglu, down_proj.lora_A, down_proj.lora_B, down.xa, dout, down_proj.lora_A#gradient, down_proj.lora_B#gradient, dswiglu -> dswiglu
swiglu_backward gate, up, dswiglu -> dgate, dup
matmul_nn dup, up_proj -> dpost_attention_norm
matmul_nn dgate, gate_proj, dpost_attention_norm -> dpost_attention_norm
rms_norm_backward h, post_attention_layernorm, post_attention_norm.rstd, dpost_attention_norm -> dh
add dout, dh -> dh
matmul_nn dh, o_proj -> dattention
attention_backward q_rope, k_rope, v+lora, attention, attention.lse, dattention, starts -> dq_rope, dk_rope, dv+lora
lora_backward input_norm, v_proj.lora_A, v_proj.lora_B, v.xa, dv+lora, v_proj.lora_A#gradient, v_proj.lora_B#gradient
)");
}

TEST(BackwardTest, GoldenTapeRecompute) {
  const Recorded recorded(OneLayer(), AdapterOn({"v_proj", "down_proj"}), SavePolicy::kRecompute);
  EXPECT_EQ("\n" + ShortNames(recorded.tape), R"(
rope_table positions -> rope.cos, rope.sin
embedding ids, model.embed_tokens -> embedding
rms_norm embedding, input_layernorm -> input_norm, input_norm.rstd
matmul_nt input_norm, q_proj -> q
matmul_nt input_norm, k_proj -> k
matmul_nt input_norm, v_proj -> v
lora_down input_norm, v_proj.lora_A -> v.xa
lora_up v, v.xa, v_proj.lora_B -> v+lora
rope q, rope.cos, rope.sin -> q_rope
rope k, rope.cos, rope.sin -> k_rope
attention q_rope, k_rope, v+lora, starts -> attention, attention.lse
matmul_nt attention, o_proj -> o
add embedding, o -> h
rms_norm h, post_attention_layernorm -> post_attention_norm, post_attention_norm.rstd
matmul_nt post_attention_norm, gate_proj -> gate
matmul_nt post_attention_norm, up_proj -> up
swiglu gate, up -> swiglu
matmul_nt swiglu, down_proj -> down
lora_down swiglu, down_proj.lora_A -> down.xa
lora_up down, down.xa, down_proj.lora_B -> down+lora
add h, down+lora -> out
rms_norm out, model.norm -> final_norm, final_norm.rstd
linear_cross_entropy_fused final_norm, lm_head, targets -> loss, lse, dhidden
rms_norm_backward out, model.norm, final_norm.rstd, dhidden -> dout
rms_norm embedding, input_layernorm -> input_norm', input_norm.rstd'
matmul_nt input_norm', q_proj -> q'
rope q', rope.cos, rope.sin -> q_rope'
matmul_nt input_norm', k_proj -> k'
rope k', rope.cos, rope.sin -> k_rope'
matmul_nt input_norm', v_proj -> v'
lora_down input_norm', v_proj.lora_A -> v.xa'
lora_up v', v.xa', v_proj.lora_B -> v+lora'
attention q_rope', k_rope', v+lora', starts -> attention', attention.lse'
matmul_nt attention', o_proj -> o'
add embedding, o' -> h'
rms_norm h', post_attention_layernorm -> post_attention_norm', post_attention_norm.rstd'
matmul_nt post_attention_norm', gate_proj -> gate'
matmul_nt post_attention_norm', up_proj -> up'
swiglu gate', up' -> swiglu'
lora_down swiglu', down_proj.lora_A -> down.xa'
matmul_nn dout, down_proj -> dswiglu
lora_backward swiglu', down_proj.lora_A, down_proj.lora_B, down.xa', dout, down_proj.lora_A#gradient, down_proj.lora_B#gradient, dswiglu -> dswiglu
swiglu_backward gate', up', dswiglu -> dgate, dup
matmul_nn dup, up_proj -> dpost_attention_norm
matmul_nn dgate, gate_proj, dpost_attention_norm -> dpost_attention_norm
rms_norm_backward h', post_attention_layernorm, post_attention_norm.rstd', dpost_attention_norm -> dh
add dout, dh -> dh
matmul_nn dh, o_proj -> dattention
attention_backward q_rope', k_rope', v+lora', attention', attention.lse', dattention, starts -> dq_rope, dk_rope, dv+lora
lora_backward input_norm', v_proj.lora_A, v_proj.lora_B, v.xa', dv+lora, v_proj.lora_A#gradient, v_proj.lora_B#gradient
)");
}

TEST(BackwardTest, GradientsOfAValueUsedTwiceAreAdded) {
  Store store;
  const StoreId w = store.Add("w", 4, 4, Category::kParameters);
  store.MakeTrainable(w, true);
  Tape tape(&store);
  const ValueId ids = tape.Input("ids", 1, 3, DType::kI32);
  const ValueId targets = tape.Input("targets", 1, 3, DType::kI32);
  const ValueId x = RecordEmbedding(&tape, tape.Persistent(w), ids, 0, tape.value(ids).cols, "x");
  const ValueId y = RecordGatedUnit(&tape, GateActivation::kSilu, x, x, "y");
  const ValueId z = RecordAdd(&tape, y, x, "z");
  RecordLinearCrossEntropy(&tape, z, tape.Persistent(w), targets, 0, {}, /*train=*/true);
  Backward(&tape, SavePolicy::kKeep).Run();
  EXPECT_EQ(tape.DebugString(),
            "embedding ids, w -> x\n"
            "swiglu x, x -> y\n"
            "add y, x -> z\n"
            "linear_cross_entropy z, w, targets -> loss, lse\n"
            "linear_cross_entropy_backward z, w, targets, lse, w#gradient -> dz\n"
            "swiglu_backward x, x, dz -> dx, dx\n"
            "add dz, dx -> dx\n"
            "add dx, dx -> dx\n"
            "embedding_backward ids, dx, w#gradient\n");
}

TEST(BackwardTest, TiedEmbeddingsGatherBothGradients) {
  DecoderConfig config = OneLayer();
  for (const bool tied : {true, false}) {
    config.tie_embeddings = tied;
    const Recorded recorded(config, {}, SavePolicy::kKeep);
    std::map<std::string, std::string> writer;
    for (const Step& step : recorded.tape.steps()) {
      const ValueId last = step.inputs.back();
      const std::string& name = recorded.tape.value(last).name;
      if (absl::EndsWith(name, "#gradient")) absl::StrAppend(&writer[name], std::string(step.op), ";");
    }
    const std::string embedding = writer["model.embed_tokens.weight#gradient"];
    if (tied) {
      EXPECT_EQ(embedding, "linear_cross_entropy_backward;embedding_backward;");
      EXPECT_EQ(writer.count("lm_head.weight#gradient"), 0u);
    } else {
      EXPECT_EQ(embedding, "embedding_backward;");
      EXPECT_EQ(writer["lm_head.weight#gradient"], "linear_cross_entropy_backward;");
    }
  }
}

TEST(BackwardTest, FrozenPartsGetNoGradientSteps) {
  // Nothing before the only adapter learns: no gradient flows into attention, nor into any norm but the last two.
  const Recorded mlp(OneLayer(), AdapterOn({"down_proj"}), SavePolicy::kKeep);
  EXPECT_EQ(mlp.CountBackward("lora_backward"), 1);
  EXPECT_EQ(mlp.CountBackward("rms_norm_backward"), 1) << "the final norm";
  EXPECT_EQ(mlp.CountBackward("attention_backward"), 0);
  EXPECT_EQ(mlp.CountBackward("swiglu_backward"), 0);
  EXPECT_EQ(mlp.CountBackward("matmul_nn"), 0);
  EXPECT_EQ(mlp.CountBackward("embedding_backward"), 0);

  // With q, k and v adapted the first norm stays silent: nothing trainable stands before it.
  const Recorded qkv(OneLayer(), AdapterOn({"q_proj", "k_proj", "v_proj"}), SavePolicy::kKeep);
  EXPECT_EQ(qkv.CountBackward("rms_norm_backward"), 2) << "the final norm and that behind attention";
  EXPECT_EQ(qkv.CountBackward("matmul_nn"), 4) << "o, gate, up and down; not q, k, v";
  EXPECT_EQ(qkv.CountBackward("matmul_tn"), 0) << "no frozen weight has a gradient";

  // Of two layers with the adapter in the second the first has no backward at all.
  AdapterOptions second = TinyAdapter();
  second.layers = {1};
  for (const SavePolicy policy : {SavePolicy::kKeep, SavePolicy::kRecompute}) {
    const Recorded two(TinyConfig(), second, policy);
    for (size_t s = two.forward_steps; s < two.tape.steps().size(); ++s) EXPECT_NE(two.tape.steps()[s].layer, 0);
  }
}

TEST(BackwardTest, RecomputeEmitsEachNeededStepOnce) {
  const DecoderConfig config = TinyConfig();
  const Recorded recorded(config, TinyAdapter(), SavePolicy::kRecompute);
  std::set<std::string> forward;
  std::set<std::string> again;
  for (size_t s = 0; s < recorded.tape.steps().size(); ++s) {
    for (ValueId id : recorded.tape.steps()[s].outputs) {
      const std::string& name = recorded.tape.value(id).name;
      if (s < recorded.forward_steps) {
        forward.insert(name);
      } else if (absl::EndsWith(name, "'")) {
        EXPECT_TRUE(again.insert(name).second) << name << " is computed again twice";
        EXPECT_EQ(forward.count(name.substr(0, name.size() - 1)), 1u) << name;
      }
    }
  }
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    EXPECT_EQ(again.count(absl::StrCat("layers.", layer, ".attention'")), 1u);
    EXPECT_EQ(again.count(absl::StrCat("layers.", layer, ".down'")), 0u) << "no gradient step reads the last product";
    EXPECT_EQ(again.count(absl::StrCat("layers.", layer, ".out'")), 0u) << "the boundary is kept";
  }
  // Nothing outside of the layers is computed again.
  for (const std::string& name : again) EXPECT_TRUE(absl::StartsWith(name, "layers.")) << name;
}

// Inside its layer, a gradient step reads recomputed copies and boundaries alone: else both would stay alive.
TEST(BackwardTest, RecomputedGradientStepsReadNoValueOfTheForwardPass) {
  const Recorded recorded(TinyConfig(), TinyAdapter(), SavePolicy::kRecompute);
  for (size_t s = recorded.forward_steps; s < recorded.tape.steps().size(); ++s) {
    for (ValueId id : recorded.tape.steps()[s].inputs) {
      const Value& value = recorded.tape.value(id);
      const bool forward = value.producer >= 0 && value.producer < static_cast<int32_t>(recorded.forward_steps);
      EXPECT_FALSE(forward && value.layer >= 0 && value.kind != ValueKind::kBoundary)
          << recorded.tape.steps()[s].op << " reads " << value.name;
    }
  }
}

}  // namespace
}  // namespace thimble
