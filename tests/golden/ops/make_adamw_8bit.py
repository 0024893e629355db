"""Writes adamw_8bit.txt beside it: what bitsandbytes' AdamW8bit computes on a CPU.

Needs torch and bitsandbytes (made with 2.15 and 0.50.2). Run: python3 make_adamw_8bit.py
exact: betas of 0.5 and gradients of eleven bits, so that fused or separate rounding is the same and every bit of
the moments must agree: a line a step with the CRC-32 of the codes and the absmax. (The parameters may differ: the
root that PyTorch takes from Intel's library is not always the nearest float.) Then the default betas: the codes after
the last step in hexadecimal, m and v. The lines param hold every 61st parameter after the last step of each run.
"""

import os
import zlib

import bitsandbytes as bnb
import numpy as np
import torch

COUNT = 4096 + 2 * 256 + 37
STEPS = 6


def mix(x):
    x = x.astype(np.uint64)
    x ^= x >> 16
    x = x * 0x7FEB352D & 0xFFFFFFFF
    x ^= x >> 15
    x = x * 0x846CA68B & 0xFFFFFFFF
    return x ^ (x >> 16)


def values(stream, span):
    """(1 + k / 1024) * 2^-(e % span) with a sign, from 32 hashed bits an element."""
    bits = mix(np.arange(COUNT) + 1000003 * stream)
    magnitude = (1 + (bits & 1023) / 1024) * 2.0 ** -((bits >> 10 & 255) % span).astype(np.float64)
    return np.where(bits >> 31 == 1, -magnitude, magnitude).astype(np.float32)


def gradient(step):
    grad = values(step, 14)
    grad[256:512] = 0
    if step != 3:
        grad[512:768] = 0
    return grad


def run(betas):
    param = torch.nn.Parameter(torch.from_numpy(values(0, 3)))
    optimiser = bnb.optim.AdamW8bit([param], lr=3e-3, betas=betas, eps=1e-8, weight_decay=0.1)
    for step in range(1, STEPS + 1):
        param.grad = torch.from_numpy(gradient(step))
        optimiser.step()
        yield param.detach().numpy(), {k: v.numpy() for k, v in optimiser.state[param].items() if torch.is_tensor(v)}


def crc(array):
    return " %08x" % zlib.crc32(np.ascontiguousarray(array).tobytes())


def samples(param):
    return "param" + "".join(" %.9g" % value for value in param[::61]) + "\n"


text = ""
for param, state in run((0.5, 0.5)):
    arrays = [state["state1"], state["state2"], state["absmax1"], state["absmax2"]]
    text += "exact" + "".join(crc(array) for array in arrays) + "\n"
text += samples(param)
for param, state in run((0.9, 0.999)):
    pass
text += "m " + state["state1"].tobytes().hex() + "\n" + "v " + state["state2"].tobytes().hex() + "\n"
text += samples(param)
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "adamw_8bit.txt"), "w") as file:
    file.write(text)
