"""Writes lion.txt (bitsandbytes' Lion32bit), adafactor.txt (transformers' Adafactor) and apollo.txt (apollo-torch's
APOLLOAdamW, with the projections it drew) beside it.

Needs torch, bitsandbytes, transformers and apollo-torch (made with 2.15, 0.50.2, 5.23 and 1.0.3).
Run: python3 make_optimizers.py
Every line is a name and float32 numbers with nine digits, which is exact.
"""

import os

import bitsandbytes as bnb
import torch
from apollo_torch import APOLLOAdamW
from transformers.optimization import Adafactor

FOLDER = os.path.dirname(os.path.abspath(__file__))


def line(name, tensor):
    return name + "".join(" %.9g" % value for value in tensor.flatten().tolist()) + "\n"


def gradient(generator, *shape):
    return torch.randn(*shape, generator=generator) * 10.0 ** torch.randint(-6, 3, shape, generator=generator)


def lion():
    generator = torch.Generator().manual_seed(1)
    param = torch.nn.Parameter(torch.randn(19, generator=generator))
    optimiser = bnb.optim.Lion32bit([param], lr=3e-2, betas=(0.9, 0.95), weight_decay=0.1)
    text = line("param", param.detach())
    for step in range(6):
        param.grad = gradient(generator, 19)
        param.grad[3] = 0
        text += line("grad", param.grad)
        optimiser.step()
        text += line("param", param.detach()) + line("m", optimiser.state[param]["state1"])
    return text


def adafactor():
    generator = torch.Generator().manual_seed(2)
    matrix = torch.nn.Parameter(torch.randn(5, 7, generator=generator))
    vector = torch.nn.Parameter(torch.randn(9, generator=generator))
    optimiser = Adafactor([matrix, vector], lr=3e-2, weight_decay=0.1, scale_parameter=False, relative_step=False)
    text = line("matrix", matrix.detach()) + line("vector", vector.detach())
    for step in range(6):
        for name, param in (("matrix", matrix), ("vector", vector)):
            param.grad = gradient(generator, *param.shape)
            text += line(name + "_grad", param.grad)
        optimiser.step()
        text += line("matrix", matrix.detach())
        text += line("row", optimiser.state[matrix]["exp_avg_sq_row"])
        text += line("col", optimiser.state[matrix]["exp_avg_sq_col"])
        text += line("vector", vector.detach()) + line("v", optimiser.state[vector]["exp_avg_sq"])
    return text


def apollo():
    generator = torch.Generator().manual_seed(3)
    text = ""
    for rows, cols, scale in ((7, 5, 1.0), (4, 9, 4.0)):
        param = torch.nn.Parameter(torch.randn(rows, cols, generator=generator))
        group = {"params": [param], "rank": 2, "update_proj_gap": 3, "scale": scale, "proj": "random"}
        group |= {"proj_type": "std", "scale_type": "channel"}
        optimiser = APOLLOAdamW([group], lr=3e-2, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1)
        text += line("param", param.detach())
        for step in range(6):
            param.grad = gradient(generator, rows, cols)
            text += line("grad", param.grad)
            optimiser.step()
            state = optimiser.state[param]
            text += line("projection", state["projector"].ortho_matrix) + line("param", param.detach())
            text += line("m", state["exp_avg"]) + line("v", state["exp_avg_sq"])
    return text


for name, text in (("lion.txt", lion()), ("adafactor.txt", adafactor()), ("apollo.txt", apollo())):
    with open(os.path.join(FOLDER, name), "w") as file:
        file.write(text)
