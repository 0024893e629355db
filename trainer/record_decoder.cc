#include "trainer/record_decoder.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "ops/matmul.h"
#include "trainer/tape_ops.h"

namespace thimble {
namespace {

// `tile`, or the least multiple of kMatMulInnerBlock with which there are not more than `most` tiles: tapes stay short.
int64_t TileOf(int64_t tokens, int64_t tile, int64_t most) {
  if (tile == 0) return tokens;
  const int64_t blocks = (tokens + most * kMatMulInnerBlock - 1) / (most * kMatMulInnerBlock);
  return std::max(tile, blocks * kMatMulInnerBlock);
}

// Records decoder layers with the conventions that hold for all of them. What is recorded a tile at a time is recorded
// last tile first, so that backward, which goes the other way, sums over tokens in their order.
class LayerRecorder {
 public:
  LayerRecorder(Tape* tape, const Decoder& decoder, const DecoderInputs& inputs, RopeTableValues rope,
                std::vector<TokenTile> tiles, const RecordOptions& options)
      : tape_(tape),
        decoder_(decoder),
        inputs_(inputs),
        rope_(rope),
        tiles_(std::move(tiles)),
        dropout_(options.dropout),
        mlp_tile_(options.mlp_tile),
        served_(options.served),
        apart_(options.apart) {}

  // x and the result: a value a tile.
  std::vector<ValueId> Record(const std::vector<ValueId>& x, int64_t index, ValueId k_cache, ValueId v_cache) {
    weights_ = &decoder_.layers[index];
    index_ = index;
    tape_->SetLayer(apart_ ? -1 : static_cast<int32_t>(index));
    std::vector<std::vector<ValueId>> attended(x.size());  // by tile and group of heads
    if (x.size() == 1) {
      SetPrefix("");
      attended[0] = {Attention(Project(x[0]), Shape(1), k_cache, v_cache, prefix_ + "attention")};
    } else {
      attended = AttendByHeads(x);
    }
    std::vector<ValueId> out(x.size());
    for (size_t t = x.size(); t-- > 0;) {
      BeginTile(t);
      ValueId a = RecordJoinColumns(tape_, attended[t], prefix_ + "attended");
      if (decoder_.config.sub_norms) a = Norm(a, weights_->attention_sub_norm, "attention_sub_norm");
      const ValueId h = RecordAdd(tape_, x[t], Linear(a, weights_->o, "o"), prefix_ + "h");
      out[t] = Mlp(h);
      if (!apart_) tape_->SetKind(out[t], ValueKind::kBoundary);
    }
    tape_->SetLayer(-1);
    return out;
  }

 private:
  struct Heads {
    ValueId q = kNoValue, k = kNoValue, v = kNoValue;
  };

  void SetPrefix(const std::string& tile) { prefix_ = absl::StrCat(decoder_.prefix, "layers.", index_, ".", tile); }

  void BeginTile(size_t t) {
    SetPrefix(tiles_.size() == 1 ? "" : absl::StrCat("t", t, "."));
    first_row_ = tiles_[t].begin;
  }

  // Of one of `groups` equal parts of the heads.
  AttentionShape Shape(int64_t groups) const {
    const DecoderConfig& c = decoder_.config;
    AttentionShape shape;
    shape.num_heads = static_cast<int>(c.num_heads / groups);
    shape.num_kv_heads = static_cast<int>(c.num_kv_heads / groups);
    shape.head_dim = static_cast<int>(c.head_dim);
    shape.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(c.head_dim)));
    shape.window = c.windows[index_];
    shape.compute = decoder_.compute;
    return shape;
  }

  ValueId Attention(const Heads& h, const AttentionShape& shape, ValueId k_cache, ValueId v_cache,
                    const std::string& name) {
    if (k_cache == kNoValue) return RecordAttention(tape_, h.q, h.k, h.v, inputs_.starts, shape, name);
    return RecordCachedAttention(tape_, h.q, h.k, h.v, k_cache, v_cache, inputs_.starts, shape, name);
  }

  Heads Project(ValueId x) {
    const DecoderConfig& c = decoder_.config;
    const LayerWeights& w = *weights_;
    const ValueId n = Norm(x, w.input_norm, "input_norm");
    Heads h{Linear(n, w.q, "q"), Linear(n, w.k, "k"), Linear(n, w.v, "v")};
    if (c.qk_norm) {
      h.q = Norm(h.q, w.q_norm, "q_norm");
      h.k = Norm(h.k, w.k_norm, "k_norm");
    }
    h.q = RecordRope(tape_, h.q, rope_, first_row_, static_cast<int>(c.head_dim), prefix_ + "q_rope");
    h.k = RecordRope(tape_, h.k, rope_, first_row_, static_cast<int>(c.head_dim), prefix_ + "k_rope");
    return h;
  }

  // The projections a tile at a time, attention over all tokens a key/value head (and its queries) at a time.
  std::vector<std::vector<ValueId>> AttendByHeads(const std::vector<ValueId>& x) {
    const int64_t groups = decoder_.config.num_kv_heads;
    std::vector<std::vector<ValueId>> pieces(x.size());  // by tile: q, k, v of each group in turn
    for (size_t t = x.size(); t-- > 0;) {
      BeginTile(t);
      const Heads h = Project(x[t]);
      pieces[t] = RecordSplitColumns(tape_, {h.q, h.k, h.v}, groups, prefix_ + "heads");
    }
    std::vector<std::vector<ValueId>> attended(x.size());
    for (int64_t g = 0; g < groups; ++g) {
      SetPrefix(absl::StrCat("g", g, "."));
      const auto whole = [&](int64_t part, const char* name) {
        std::vector<ValueId> rows;
        rows.reserve(pieces.size());
        for (const std::vector<ValueId>& tile : pieces) rows.push_back(tile[part * groups + g]);
        return RecordJoinRows(tape_, rows, prefix_ + name);
      };
      const Heads h{whole(0, "q"), whole(1, "k"), whole(2, "v")};
      const ValueId a = Attention(h, Shape(groups), kNoValue, kNoValue, prefix_ + "attention");
      std::vector<int64_t> rows;
      rows.reserve(tiles_.size());
      for (const TokenTile& tile : tiles_) rows.push_back(tile.rows);
      const std::vector<ValueId> split = RecordSplitRows(tape_, a, rows, prefix_ + "attended");
      for (size_t t = 0; t < x.size(); ++t) attended[t].push_back(split[t]);
    }
    return attended;
  }

  ValueId Norm(ValueId x, StoreId w, const char* name) {
    return RecordRmsNorm(tape_, x, tape_->Persistent(w), decoder_.config.rms_norm_eps, prefix_ + name);
  }

  ValueId Mlp(ValueId h) {
    const int64_t most = tiles_.size() == 1 ? 16 : 4;
    const StoreId norm = weights_->post_attention_norm;
    const int64_t tokens = tape_->value(h).rows;
    const int64_t tile = TileOf(tokens, mlp_tile_, most);
    if (tile >= tokens) {
      const ValueId m = Norm(h, norm, "post_attention_norm");
      return RecordAdd(tape_, h, SwiGLUMlp(m), prefix_ + "out");
    }
    // A trained norm sums its gradient over all tokens at once, and a residual beside it passes one that is no tile's.
    const bool norm_trains = tape_->value(tape_->Persistent(norm)).needs_gradient;
    const std::string prefix = prefix_;
    const int64_t first_row = first_row_;
    const ValueId source = norm_trains ? Norm(h, norm, "post_attention_norm") : h;
    ValueId whole = kNoValue;
    for (int64_t begin = (tokens - 1) / tile * tile; begin >= 0; begin -= tile) {
      prefix_ = absl::StrCat(prefix, "tile", begin / tile, ".");
      first_row_ = first_row + begin;
      const ValueId x = RecordSliceRows(tape_, source, begin, std::min(tile, tokens - begin), prefix_ + "x");
      ValueId y = SwiGLUMlp(norm_trains ? x : Norm(x, norm, "post_attention_norm"));
      if (!norm_trains) y = RecordAdd(tape_, x, y, prefix_ + "y");
      whole = RecordSetRows(tape_, whole, y, begin, tokens, prefix + "mlp");
    }
    first_row_ = first_row;
    prefix_ = prefix;
    return norm_trains ? RecordAdd(tape_, h, whole, prefix_ + "out") : whole;
  }

  ValueId SwiGLUMlp(ValueId m) {
    const ValueId gate = Linear(m, weights_->gate, "gate");
    const ValueId up = Linear(m, weights_->up, "up");
    ValueId y = RecordGatedUnit(tape_, decoder_.config.activation, gate, up, prefix_ + "swiglu");
    if (decoder_.config.sub_norms) y = Norm(y, weights_->mlp_sub_norm, "mlp_sub_norm");
    return Linear(y, weights_->down, "down");
  }

  ValueId Linear(ValueId x, const LinearWeights& linear, const char* name) {
    const ValueId weight = tape_->Persistent(linear.weight);
    const ValueId bias = linear.bias < 0 ? kNoValue : tape_->Persistent(linear.bias);
    if (served_ && linear.served >= 0) return Served(x, linear, bias, name);
    if (linear.lora_a < 0) {
      if (decoder_.config.ternary) return TernaryLinear(x, weight, bias, name);
      return RecordLinear(tape_, x, weight, bias, decoder_.compute, prefix_ + name);
    }
    LoraSpec lora;
    lora.a = tape_->Persistent(linear.lora_a);
    lora.b = tape_->Persistent(linear.lora_b);
    if (linear.magnitude >= 0) lora.magnitude = tape_->Persistent(linear.magnitude);
    lora.scale = linear.lora_scale;
    lora.dropout = dropout_ ? static_cast<float>(decoder_.adapter.dropout) : 0.0f;
    lora.seed = linear.dropout_seed;
    lora.first_row = first_row_;
    if (!decoder_.config.ternary) {
      return RecordLoraLinear(tape_, x, weight, bias, lora, decoder_.compute, prefix_ + name);
    }
    const ValueId base = RecordTernaryProduct(tape_, Int8RowsOf(x, name), weight, prefix_ + name);
    return RecordLoraBeside(tape_, base, x, weight, bias, lora, decoder_.compute, prefix_ + name);
  }

  // Layers that read one input share its rows in int8.
  const Int8Rows& Int8RowsOf(ValueId x, const char* name) {
    if (quantised_ != x) {
      quantised_ = x;
      rows_ = RecordQuantizeRows(tape_, x, prefix_ + name + ".int8");
    }
    return rows_;
  }

  // Tiles of tokens share the codes of a weight that trains.
  ValueId TernaryLinear(ValueId x, ValueId weight, ValueId bias, const char* name) {
    const Int8Rows rows = Int8RowsOf(x, name);
    const auto [at, fresh] = ternary_.try_emplace(weight);
    if (fresh && tape_->store().entry(tape_->value(weight).store).view.format != Format::kTernary) {
      at->second =
          RecordTernarize(tape_, weight, absl::StrCat(decoder_.prefix, "layers.", index_, ".", name, ".ternary"));
    }
    return RecordBitLinear(tape_, x, rows, weight, at->second, bias, decoder_.compute, prefix_ + name);
  }

  ValueId Served(ValueId x, const LinearWeights& linear, ValueId bias, const char* name) {
    ServedLinear served;
    served.served = tape_->Persistent(linear.served);
    if (tape_->store().entry(linear.weight).trainable) served.trained = tape_->Persistent(linear.weight);
    if (linear.lora_a >= 0) {
      served.lora.a = tape_->Persistent(linear.lora_a);
      served.lora.b = tape_->Persistent(linear.lora_b);
      served.lora.scale = linear.lora_scale;
    }
    return RecordServedLinear(tape_, Rounded(x, name), served, bias, decoder_.compute, prefix_ + name);
  }

  // Once for all layers that read x.
  ValueId Rounded(ValueId x, const char* name) {
    if (decoder_.activation_grid == ActivationGrid::kNone) return x;
    if (rounded_from_ != x) {
      rounded_ = RecordRoundTokens(tape_, x, decoder_.activation_grid, absl::StrCat(prefix_, name, ".rounded"));
      rounded_from_ = x;
    }
    return rounded_;
  }

  Tape* tape_;
  const Decoder& decoder_;
  DecoderInputs inputs_;
  RopeTableValues rope_;
  std::vector<TokenTile> tiles_;
  bool dropout_;
  int64_t mlp_tile_;
  bool served_ = true;
  bool apart_ = false;
  const LayerWeights* weights_ = nullptr;  // of the layer that is recorded
  int64_t index_ = 0;
  int64_t first_row_ = 0;         // of the tile that is recorded
  ValueId quantised_ = kNoValue;  // whose rows in int8 are rows_
  Int8Rows rows_;
  std::map<ValueId, TernaryWeight> ternary_;  // by weight
  ValueId rounded_from_ = kNoValue, rounded_ = kNoValue;
  std::string prefix_;
};

}  // namespace

DecoderInputs RecordInputs(Tape* tape, int64_t tokens) {
  DecoderInputs inputs;
  inputs.ids = tape->Input("ids", 1, tokens, DType::kI32);
  inputs.positions = tape->Input("positions", 1, tokens, DType::kI32);
  inputs.starts = tape->Input("starts", 1, tokens, DType::kI32);
  inputs.targets = tape->Input("targets", 1, tokens, DType::kI32);
  return inputs;
}

std::vector<TokenTile> TokenTiles(int64_t tokens, int64_t sequence_tile) {
  constexpr int64_t kMostTiles = 16;
  const int64_t tile = TileOf(tokens, sequence_tile, kMostTiles);
  std::vector<TokenTile> tiles;
  for (int64_t begin = 0; begin < tokens; begin += tile) tiles.push_back({begin, std::min(tile, tokens - begin)});
  return tiles;
}

std::vector<ValueId> RecordLayers(Tape* tape, const Decoder& decoder, const DecoderInputs& inputs,
                                  const RecordOptions& options) {
  const DecoderConfig& c = decoder.config;
  RopeFrequencies rope =
      MakeRopeFrequencies(static_cast<int>(c.head_dim), c.rope_theta, c.rope_scaling, c.max_position);
  const RopeTableValues table =
      RecordRopeTable(tape, inputs.positions, std::move(rope.inv_freq), rope.attention_factor);
  const std::vector<TokenTile> tiles = TokenTiles(tape->value(inputs.ids).cols, options.sequence_tile);
  const bool served = options.served && decoder.served_embedding >= 0;
  const ValueId trained = tape->Persistent(decoder.embedding);
  const ValueId embedding = served ? tape->Persistent(decoder.served_embedding) : trained;
  std::vector<ValueId> x(tiles.size());
  for (size_t t = tiles.size(); t-- > 0;) {
    x[t] = RecordEmbedding(tape, embedding, inputs.ids, tiles[t].begin, tiles[t].rows, "embedding",
                           served && tape->value(trained).needs_gradient ? trained : kNoValue);
  }
  LayerRecorder recorder(tape, decoder, inputs, table, tiles, options);
  const std::vector<StoreId>& caches = options.caches;
  for (int64_t i = 0; i < c.num_layers; ++i) {
    const bool cached = !caches.empty();
    x = recorder.Record(x, i, cached ? tape->Persistent(caches[2 * i]) : kNoValue,
                        cached ? tape->Persistent(caches[2 * i + 1]) : kNoValue);
  }
  return x;
}

ValueId RecordFinalNorm(Tape* tape, const Decoder& decoder, ValueId x) {
  return RecordRmsNorm(tape, x, tape->Persistent(decoder.final_norm), decoder.config.rms_norm_eps, "final_norm");
}

}  // namespace thimble
