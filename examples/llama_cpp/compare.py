#!/usr/bin/env python3
"""Compares Thimble with llama.cpp on a GGUF file: greedy tokens of 50 prompts, and the log-probability of each of them.

    compare.py MODEL.gguf [--folder=HF_FOLDER] [--prompts=FILE] [--count=50] [--tokens=32] [--thimble=PROGRAM]

The log-probabilities are those of llama.cpp over the same tokens in one pass, with a cache in f32 and without flash
attention. With --folder, the file's values in f32 (thimble export MODEL.gguf --dtype=f32), both are put beside an
exact one in double, and beside one in double whose linear layers see their inputs rounded to f16. That is what llama.cpp
computes for F16 weights on a processor, and what the difference comes from; for F32 weights it rounds nothing.
Needs llama-cpp-python, numpy; with --folder torch and transformers.
"""
import argparse
import json
import os
import subprocess
import sys

import llama_cpp
import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model')
    parser.add_argument('--folder')
    parser.add_argument('--prompts', default=os.path.join(HERE, '..', 'quickstart', 'heldout.jsonl'))
    parser.add_argument('--count', type=int, default=50)
    parser.add_argument('--tokens', type=int, default=32)
    parser.add_argument('--thimble', default=os.path.join(HERE, '..', '..', 'build', 'release', 'thimble'))
    parser.add_argument('--exact', type=int, default=10, help='prompts of which the passes in double are made')
    return parser.parse_args()


def prompts_of(path, count):
    prompts = []
    with open(path, encoding='utf-8') as rows:
        for row in rows:
            row = json.loads(row)
            text = row['messages'][0]['content'] if 'messages' in row else row.get('prompt', row.get('text'))
            if text not in prompts:
                prompts.append(text)
            if len(prompts) == count:
                return prompts
    sys.exit(f'{path}: has {len(prompts)} different prompts, expected {count}')


def thimble_tokens(program, model, prompt, count):
    run = subprocess.run([program, 'generate', model, '--raw', '--prompt=' + prompt, f'--max_new_tokens={count}', '--json'],
                         capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(run.stderr)
    return json.loads(run.stdout)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


class Exact:
    """A model in double, by choice with the inputs of linear layers rounded to f16."""

    def __init__(self, folder):
        import torch
        import transformers

        self.torch = torch
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        self.rounded = False

        def hook(module, inputs):
            return (inputs[0].half().double(),) if self.rounded else None

        for module in self.model.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(hook)

    def logprobs(self, tokens, rounded):
        self.rounded = rounded
        with self.torch.no_grad():
            return log_softmax(self.model(self.torch.tensor([tokens])).logits[0].numpy())


def chosen(logprobs, tokens, first):
    """Of tokens[first:], each predicted a position earlier."""
    return np.array([logprobs[i - 1][tokens[i]] for i in range(first, len(tokens))])


class Largest:
    def __init__(self):
        self.all = []

    def add(self, a, b):
        self.all += list(np.abs(a - b))

    def __str__(self):
        return f'max {max(self.all):.2e}, mean {np.mean(self.all):.2e} of {len(self.all)}'


def main():
    args = arguments()
    llama = llama_cpp.Llama(args.model, n_ctx=1024, n_batch=1024, verbose=False, logits_all=True, flash_attn=False,
                            type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32)
    exact = Exact(args.folder) if args.folder else None
    sums = {}

    def compare(name, a, b):
        sums.setdefault(name, Largest()).add(a, b)

    same_prompt = same_answer = 0
    prompts = prompts_of(args.prompts, args.count)
    for index, prompt in enumerate(prompts):
        given = llama.tokenize(prompt.encode(), add_bos=True, special=True)
        mine = thimble_tokens(args.thimble, args.model, prompt, args.tokens)
        same_prompt += mine['prompt_tokens'] == len(given)
        tokens = given + mine['tokens']
        llama.reset()
        llama.eval(tokens)
        theirs = log_softmax(llama.scores[:len(tokens)])
        greedy = [int(theirs[i - 1].argmax()) for i in range(len(given), len(tokens))]
        same_answer += greedy == mine['tokens']
        if greedy != mine['tokens']:
            at = next(i for i in range(len(greedy)) if greedy[i] != mine['tokens'][i])
            row = theirs[len(given) + at - 1]
            print(f'prompt {index}, token {at}: {mine["tokens"][at]} {row[mine["tokens"][at]]:.5f}, '
                  f'llama.cpp {greedy[at]} {row[greedy[at]]:.5f}')
        ours, other = np.array(mine['logprobs']), chosen(theirs, tokens, len(given))
        compare('Thimble to llama.cpp', ours, other)
        if exact and index < args.exact:
            whole, rounded = (chosen(exact.logprobs(tokens, r), tokens, len(given)) for r in (False, True))
            compare('Thimble to exact', ours, whole)
            compare('llama.cpp to exact', other, whole)
            compare('llama.cpp to exact with inputs in f16', other, rounded)
            compare('exact with inputs in f16 to exact', rounded, whole)
    print(f'{args.model}: {len(prompts)} prompts; as many tokens in {same_prompt} of them; '
          f'the same greedy answer in {same_answer}')
    for name, largest in sums.items():
        print(f'  {name:40} {largest}')


if __name__ == '__main__':
    main()
