"""Writes the small files that tests/fuzz/corpus begins with. Needs numpy, safetensors and gguf. Run: python make_corpus.py
Inputs that a fuzzer found stand beside them and stay. The name of one that is to be refused begins with refused_.
"""
import json
import os
import shutil

import gguf
import numpy as np
from safetensors.numpy import save

HERE = os.path.dirname(os.path.abspath(__file__))
CORPUS = os.path.join(HERE, "corpus")
GOLDEN = os.path.join(HERE, "..", "golden")


def write(reader, name, content):
    folder = os.path.join(CORPUS, reader)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "wb") as out:
        out.write(content if isinstance(content, bytes) else content.encode())


def tokenizer(**changes):
    vocab = {c: i for i, c in enumerate(["<unk>", "<s>", "</s>"] + list("abefghilnopqrstuvwyz") + ["Ġ", "th", "the"])}
    model = {"type": "BPE", "unk_token": "<unk>", "vocab": vocab, "merges": ["t h", "th e"]}
    file = {
        "version": "1.0",
        "added_tokens": [{"id": 1, "content": "<s>", "special": True, "lstrip": False, "rstrip": True,
                          "single_word": False, "normalized": False}],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                                                                    {"Sequence": {"id": "A", "type_id": 0}}],
                           "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel"},
        "model": model,
    }
    file.update(changes)
    return json.dumps(file)


def tokenizers():
    write("tokenizer", "byte_level.json", tokenizer())
    split = {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "(?i:'s|'t)|\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"},
         "behavior": "Isolated", "invert": False}, {"type": "Digits", "individual_digits": True}]}
    write("tokenizer", "split.json", tokenizer(pre_tokenizer=split, normalizer=None))
    spm = {"<unk>": 0, "<s>": 1, "</s>": 2, "<0x0A>": 3, "▁": 4, "a": 5, "▁a": 6, "r": 7, "e": 8, "re": 9}
    write("tokenizer", "spm.json", tokenizer(
        normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                                                        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        pre_tokenizer=None,
        decoder={"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        model={"type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True, "vocab": spm,
               "merges": [["▁", "a"], ["r", "e"]]}))


def tensors(prefix="model."):
    rng = np.random.default_rng(1)

    def f(*shape):
        return rng.standard_normal(shape).astype(np.float16)

    layer = prefix + "layers.0."
    out = {prefix + "embed_tokens.weight": f(16, 8), prefix + "norm.weight": f(8), layer + "input_layernorm.weight": f(8),
           layer + "post_attention_layernorm.weight": f(8)}
    for name, shape in (("self_attn.q_proj", (8, 8)), ("self_attn.k_proj", (8, 8)), ("self_attn.v_proj", (8, 8)),
                        ("self_attn.o_proj", (8, 8)), ("mlp.gate_proj", (16, 8)), ("mlp.up_proj", (16, 8)),
                        ("mlp.down_proj", (8, 16))):
        out[layer + name + ".weight"] = f(*shape)
    return out


CONFIG = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
          "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 16, "tie_word_embeddings": True,
          "rms_norm_eps": 1e-5, "max_position_embeddings": 32, "torch_dtype": "float16"}


def folders():
    def folder(name, config, weights):
        write("model_folder", name, json.dumps(config).encode() + b"\n----\n" + save(weights))

    folder("plain", CONFIG, tensors())
    name = "model.layers.0.self_attn.q_proj"
    rng = np.random.default_rng(2)

    def words(*shape):
        return rng.integers(-2**31, 2**31, shape).astype(np.int32)

    def quantised(parts):
        out = {k: v for k, v in tensors().items() if not k.startswith(name)}
        return {**out, **{f"{name}.{k}": v for k, v in parts.items()}}

    gptq = {"qweight": words(1, 8), "qzeros": words(1, 1), "scales": np.ones((1, 8), np.float16),
            "g_idx": np.zeros(8, np.int32)}
    folder("gptq", {**CONFIG, "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 8, "sym": False}},
           quantised(gptq))
    folder("gptq3", {**CONFIG, "quantization_config": {"quant_method": "gptq", "bits": 3, "group_size": -1}},
           {f"{name}.{k}": v for k, v in {"qweight": words(3, 32), "qzeros": words(1, 3),
                                          "scales": np.ones((1, 32), np.float16)}.items()})
    awq = {"qweight": words(8, 1), "qzeros": words(2, 1), "scales": np.ones((2, 8), np.float16)}
    folder("awq", {**CONFIG, "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 4}}, quantised(awq))
    packed = {"weight_packed": words(8, 1), "weight_shape": np.array([8, 8]), "weight_scale": np.ones((8, 2), np.float32),
              "weight_zero_point": words(1, 2), "weight_g_idx": np.array([0, 1] * 4, np.int32)}
    folder("packed", {**CONFIG, "quantization_config": {"quant_method": "compressed-tensors", "config_groups": {
        "group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 4, "symmetric": False}}}}}, quantised(packed))
    folder("int8", {**CONFIG, "quantization_config": {"quant_method": "compressed-tensors", "config_groups": {
        "group_0": {"weights": {"num_bits": 8, "type": "int"}}}}},
           quantised({"weight": np.ones((8, 8), np.int8), "weight_scale": np.ones((8, 1), np.float16)}))
    with open(os.path.join(GOLDEN, "stored_weight", "compressed.safetensors"), "rb") as file:
        whole = file.read()
    write("safetensors", "refused_without_data", whole[:8] + whole[8:8 + int.from_bytes(whole[:8], "little")])
    state = json.dumps({"quant_type": "nf4", "blocksize": 32, "dtype": "bfloat16", "shape": [8, 8]}).encode()
    book = np.array([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
                     -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
                     0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
                     0.7229568362236023, 1.0], np.float32)
    folder("nf4", {**CONFIG, "quantization_config": {"quant_method": "bitsandbytes", "bnb_4bit_quant_type": "nf4"}},
           quantised({"weight": np.zeros((32, 1), np.uint8), "weight.absmax": np.ones(2, np.float32),
                      "weight.quant_map": book,
                      "weight.quant_state.bitsandbytes__nf4": np.frombuffer(state, np.uint8)}))


def ggufs():
    path = os.path.join(CORPUS, "gguf", "llama.gguf")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(32)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    tokens = ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "▁a", "r"]
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0])
    writer.add_token_types([2, 3, 3, 6, 1, 1, 1, 1])
    writer.add_bos_token_id(1)
    rng = np.random.default_rng(3)
    for name, shape, quant in (("token_embd", (8, 32), "Q8_0"), ("blk.0.attn_q", (32, 32), "Q4_0"),
                               ("blk.0.attn_k", (16, 32), "Q4_1"), ("blk.0.attn_v", (16, 32), "Q5_0"),
                               ("blk.0.attn_output", (32, 32), "Q5_1"), ("blk.0.ffn_gate", (32, 32), "F16"),
                               ("blk.0.ffn_up", (32, 32), "BF16"), ("blk.0.ffn_down", (32, 32), "F32")):
        kind = gguf.GGMLQuantizationType[quant]
        data = gguf.quants.quantize(rng.standard_normal(shape).astype(np.float32), kind)
        writer.add_tensor(name + ".weight", data, raw_dtype=kind)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(name + ".weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    for name in ("mixed", "scalar", "empty"):
        os.makedirs(os.path.join(CORPUS, "safetensors"), exist_ok=True)
        shutil.copy(os.path.join(GOLDEN, "safetensors", name + ".safetensors"), os.path.join(CORPUS, "safetensors", name))
    folders()
    ggufs()
    tokenizers()
    write("recipe", "qlora.yaml", "model:\n  path: base\nquantization: {format: nf4, skip: [down_proj]}\n"
          "adapter: {type: lora, rank: 8, targets: [q_proj]}\ndata: {train: rows.jsonl, seq_len: 64}\n"
          "memory: {device_budget: 2GiB, layers: [\"0-1 keep\"]}\ntraining: {steps: 3}\noutput: {folder: run}\n")
    write("recipe", "full.yaml", "model:\n  config: {hidden_dim: 64, num_layers: 2, num_heads: 4, intermediate_dim: 128}\n"
          "  tokenizer: tokenizer.json\ndata:\n  train: [a.jsonl, b.txt]\n  form: text\n"
          "optimizer: {name: adamw8bit, learning_rate: 1e-3}\nadapter: {type: none}\noutput: {folder: run}\n")
    write("data", "messages.jsonl", '{"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", '
          '"content": "b."}], "language": "en"}\n{"messages": [{"role": "system", "content": "x"}]}\n')
    write("data", "alpaca.json", '[{"instruction": "do", "input": "it", "output": "done"}, '
          '{"instruction": "say \\u00e9\\ud83d\\ude00", "output": ""}]')
    write("data", "choices.jsonl", '{"context": "who?", "choices": ["a", "b"], "answer": 1}\n'
          '{"context": "", "choices": ["c", "d"], "answer": "A"}\n')
    write("data", "text.txt", "One line.\n\nAnother: \xe4\xb8\xad\n".encode("latin-1"))
    write("checkpoint", "whole", bytes(16))
    write("checkpoint", "refused_parts", bytes([2, 3, 67, 1, 2, 34, 0, 5, 9, 0, 200, 7, 0, 1, 3, 90, 255]))


if __name__ == "__main__":
    main()
