#!/usr/bin/env python3
"""Seconds a step under shares of the memory that keeping all activations takes, by policy: real runs.

    examples/memory_budget/table.py --model=FOLDER --data=ROWS.jsonl [--thimble=build/release/thimble]
        [--set=KEY=VALUE ...] [--rounds=2] [--policies=recompute,offload_host,offload_disk,auto]

Rows are texts of at least data.seq_len tokens. All runs of a round follow each other, and the least seconds of a cell over
the rounds count, so that a machine that is busy for a while spoils no cell. Every run trains the same steps, and the
loss of its last step has to be that of `keep`, to the last digit. Prints a Markdown table; a cell has the seconds, how they
compare with `keep` without a budget, and in brackets the share of the time that waited for transfers.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
SHARES = (1.0, 0.5, 0.3, 0.2, 0.1)
POLICIES = ("recompute", "offload_host", "offload_disk", "auto")


class Runs:
    def __init__(self, given):
        self.given = given
        self.loss = None

    def command(self, verb, settings):
        command = [self.given.thimble, verb, os.path.join(HERE, "recipe.yaml")]
        for setting in ["model.path=" + self.given.model, "data.train=" + self.given.data] + self.given.set + settings:
            command += ["--set", setting]
        return command

    def keep_bytes(self):
        done = subprocess.run(self.command("plan", []) + ["--json"], capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(done.stderr)
        return json.loads(done.stdout)["tiers"]["device"]["planned_bytes"]

    def train(self, policy, budget):
        """(seconds a step, share of stalls), or None where the plan does not fit."""
        folder = tempfile.mkdtemp()
        settings = ["memory.activations=" + policy, "output.folder=" + os.path.join(folder, "run")]
        if budget:
            settings.append("memory.device_budget=%d" % budget)
        if policy == "auto":
            # It takes to a tier only where the recipe gives it one.
            settings += ["memory.host_budget=16GiB"]
        try:
            done = subprocess.run(self.command("train", settings), capture_output=True, text=True)
            if done.returncode == 3:
                return None
            if done.returncode != 0:
                sys.exit(done.stderr)
            with open(os.path.join(folder, "run", "metrics.jsonl"), encoding="utf-8") as file:
                steps = [json.loads(line) for line in file]
            steps = [step for step in steps if "loss" in step]
            with open(os.path.join(folder, "run", "summary.json"), encoding="utf-8") as file:
                summary = json.load(file)
        finally:
            shutil.rmtree(folder)
        self.loss = self.loss or steps[-1]["loss"]
        if steps[-1]["loss"] != self.loss:
            sys.exit("%s at %s bytes: loss %r, and %r with keep" % (policy, budget, steps[-1]["loss"], self.loss))
        # The first step warms up.
        seconds = statistics.median(step["seconds"] for step in steps[1:])
        return seconds, summary["memory"]["stalled_seconds"] / summary["seconds"]


def better(old, new):
    return new if old is None or (new is not None and new < old) else old


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", required=True)
    arguments.add_argument("--data", required=True)
    arguments.add_argument("--thimble", default=os.path.join(HERE, "../../build/release/thimble"))
    arguments.add_argument("--set", action="append", default=[])
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--policies", default=",".join(POLICIES))
    given = arguments.parse_args()
    runs = Runs(given)
    policies = given.policies.split(",")
    keep_bytes = runs.keep_bytes()
    keep, cells = None, {}
    for round_number in range(given.rounds):
        keep = better(keep, runs.train("keep", 0))
        print("round %d: keep %.2f s a step in %.1f MiB" % (round_number + 1, keep[0], keep_bytes / 2**20), file=sys.stderr)
        for share in SHARES:
            for policy in policies:
                cell = runs.train(policy, int(share * keep_bytes))
                cells[share, policy] = better(cells.get((share, policy)), cell)
                print("  %3.0f%% %s: %s" % (100 * share, policy, cell), file=sys.stderr, flush=True)
    print("keep: %.2f s a step, %.0f MiB of device memory\n" % (keep[0], keep_bytes / 2**20))
    print("| budget | " + " | ".join(policies) + " |")
    print("| ---: |" + " ---: |" * len(policies))
    for share in SHARES:
        row = []
        for policy in policies:
            cell = cells[share, policy]
            text = "does not fit"
            if cell:
                text = "%.2f s, %.2f x (%.1f%%)" % (cell[0], cell[0] / keep[0], 100 * cell[1])
            row.append(text)
        print("| %.0f%% | %s |" % (100 * share, " | ".join(row)))


if __name__ == "__main__":
    main()
