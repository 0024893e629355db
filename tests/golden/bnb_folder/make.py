"""Writes a tiny model folder and what transformers with bitsandbytes saves of it in 4 bits, for QuantizeFolderTest.

Needs torch, transformers, bitsandbytes. Run: python make.py
- source/: LLaMA, bf16, tied; nf4/ (double quantisation) and fp4/ (plain): the same, quantised by bitsandbytes.

Check: python make.py SOURCE QUANTISED
opens a folder that Thimble quantised and compares its logits with those of SOURCE quantised by bitsandbytes on loading.
"""
import os
import sys

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))


def quantised(path, quant_type, double_quant, dtype):
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=dtype,
    )
    return AutoModelForCausalLM.from_pretrained(path, quantization_config=config, dtype=dtype)


def make():
    torch.manual_seed(20)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=40, tie_word_embeddings=True, max_position_embeddings=64,
    )
    source = os.path.join(HERE, "source")
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(source)
    for quant_type, double_quant in (("nf4", True), ("fp4", False)):
        model = quantised(source, quant_type, double_quant, torch.bfloat16)
        model.save_pretrained(os.path.join(HERE, quant_type))


def check(source, folder):
    mine = AutoModelForCausalLM.from_pretrained(folder)
    q = mine.config.quantization_config
    q = q if isinstance(q, dict) else q.to_dict()
    peer = quantised(source, q["bnb_4bit_quant_type"], q["bnb_4bit_use_double_quant"], mine.dtype)
    ids = torch.arange(32).reshape(2, 16) % mine.config.vocab_size
    with torch.no_grad():
        # Training mode: in evaluation some processors repack the weights and round more.
        a, b = mine.train()(ids).logits, peer.train()(ids).logits
    print("equal" if torch.equal(a, b) else f"differ by {float((a - b).abs().max())}")


if len(sys.argv) == 3:
    check(sys.argv[1], sys.argv[2])
else:
    make()
