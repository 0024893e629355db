#!/usr/bin/env python3
"""The longest sequence that fits, by device budget: one `thimble plan` a cell, no weights needed.

    examples/long_context/table.py CONFIG.json [--thimble build/release/thimble]

Prints a Markdown table with 128 GiB of host memory, and with a spill file of 2 TiB beside it.
"""
import argparse
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
BUDGETS = [8, 12, 16, 24, 40, 48, 80]
# Published for Llama 3.1 8B, QLoRA of rank 32, batch 1: Unsloth, and Hugging Face with FlashAttention 2.
UNSLOTH = [2972, 21848, 40724, 78475, 153977, 191728, 342733]
HUGGING_FACE = [0, 932, 2551, 5789, 12264, 15502, 28454]
DISK = ["memory.disk_budget=2048GiB", "memory.boundaries=offload_disk", "memory.idle_values=disk"]


def plan(thimble, config, settings):
    command = [thimble, "plan", os.path.join(HERE, "recipe.yaml"), "--json"]
    for setting in ["model.path=" + os.path.abspath(config), "data.train=[]"] + settings:
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 3):
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("config")
    arguments.add_argument("--thimble", default=os.path.join(HERE, "../../build/release/thimble"))
    given = arguments.parse_args()
    print("| device | Thimble, 128 GiB host | and 2 TiB disk | Unsloth | Hugging Face |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for budget, unsloth, hugging_face in zip(BUDGETS, UNSLOTH, HUGGING_FACE):
        cells = []
        for extra in ([], DISK):
            planned = plan(given.thimble, given.config, ["memory.device_budget=%dGiB" % budget] + extra)
            longest = planned["activations"]["in tiles"]["longest_by_memory"]
            cells.append("%s (%.1f x)" % (format(longest, ","), longest / unsloth))
        theirs = format(hugging_face, ",") if hugging_face else "does not fit"
        print("| %d GiB | %s | %s | %s | %s |" % (budget, *cells, format(unsloth, ","), theirs), flush=True)


if __name__ == "__main__":
    main()
