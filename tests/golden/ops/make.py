"""Writes adamw.txt and rope.txt beside it: values of torch.optim.AdamW and of Hugging Face's RoPE scaling.

Needs torch and transformers (made with torch 2.x on a CPU, transformers 5.x). Run: python3 make.py
Every line is a name and float32 numbers with nine digits, which is exact.
"""

import os

import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

FOLDER = os.path.dirname(os.path.abspath(__file__))


def line(name, tensor):
    return name + "".join(" %.9g" % value for value in tensor.flatten().tolist()) + "\n"


def adamw():
    generator = torch.Generator().manual_seed(1)
    param = torch.nn.Parameter(torch.randn(19, generator=generator))
    optimiser = torch.optim.AdamW([param], lr=3e-2, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1)
    text = line("param", param.detach())
    for step in range(6):
        grad = torch.randn(19, generator=generator) * 10.0 ** torch.randint(-6, 3, (19,), generator=generator)
        grad[3] = 0
        text += line("grad", grad)
        param.grad = grad.clone()
        optimiser.step()
        state = optimiser.state[param]
        text += line("param", param.detach()) + line("m", state["exp_avg"]) + line("v", state["exp_avg_sq"])
    return text


ROPE_CASES = {
    "none64": (64, 10000.0, {"rope_type": "default"}),
    "none128": (128, 1000000.0, {"rope_type": "default"}),
    "linear": (64, 10000.0, {"rope_type": "linear", "factor": 8.0}),
    "llama3": (
        128,
        500000.0,
        {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
    "yarn": (128, 1000000.0, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}),
    "yarn_mscale": (
        64,
        10000.0,
        {
            "rope_type": "yarn",
            "factor": 40.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 24,
            "beta_slow": 2,
            "mscale": 0.8,
            "mscale_all_dim": 0.5,
        },
    ),
    "yarn_whole": (
        64,
        10000.0,
        {
            "rope_type": "yarn",
            "factor": 16.0,
            "original_max_position_embeddings": 2048,
            "attention_factor": 1.25,
            "truncate": False,
        },
    ),
}


def rope():
    text = ""
    for name, (head_dim, theta, scaling) in ROPE_CASES.items():
        config = LlamaConfig(
            hidden_size=head_dim,
            num_attention_heads=1,
            head_dim=head_dim,
            max_position_embeddings=131072,
            rope_parameters={"rope_theta": theta, **scaling},
        )
        if scaling["rope_type"] == "default":
            inv_freq = 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim))
            factor = 1.0
        else:
            inv_freq, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"))
        text += line(name, torch.cat([torch.tensor([factor]), inv_freq.float()]))
    positions = torch.tensor([0, 1, 7, 511, 4095, 131071])
    inv_freq = 1.0 / (500000.0 ** (torch.arange(0, 8, 2, dtype=torch.int64).float() / 8))
    angles = positions.float()[:, None] * inv_freq[None, :]
    text += line("cos", angles.cos() * 1.5) + line("sin", angles.sin() * 1.5)
    return text


for name, text in (("adamw.txt", adamw()), ("rope.txt", rope())):
    with open(os.path.join(FOLDER, name), "w") as file:
        file.write(text)
