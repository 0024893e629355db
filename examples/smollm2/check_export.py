#!/usr/bin/env python3
"""Asks Thimble and transformers the same of an exported model: losses over held-out rows, and single probabilities.

    check_export.py --thimble=PROGRAM --run=RUN --data=ROWS.jsonl --model=FOLDER [--adapter=FOLDER] [--max_rows=24]

RUN is a finished run with a merged model in RUN/model, FOLDER its base, --adapter what `thimble export --format=peft`
wrote of the run. Thimble measures the run and the merged folder; transformers measures the merged folder in f32 and
PEFT the adapter on the base that bitsandbytes brings into 4 bits. Prints JSON: the loss of each in nats a target token;
and for answers that Thimble draws at temperature 1 to the first prompts (so that likely and unlikely tokens occur) the
largest and the mean difference between the two programs' log-probabilities of the drawn tokens, in nats. Run and
adapter, and the merged folder read by both, agree to within f32 rounding; the run and its merged folder differ by the
rounding of the merged weights.
"""

import argparse
import json
import os
import subprocess
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from compare import encode_rows


def ask_thimble(args, command, model, *flags):
    line = [args.thimble, command, model, '--json', *flags]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def thimble_loss(args, model):
    return ask_thimble(args, 'eval', model, f'--data={args.data}', f'--max_rows={args.max_rows}')['loss']


def peer_loss(model, rows):
    total, targets = 0.0, 0
    with torch.no_grad():
        for ids, mask in rows:
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
            wanted = torch.tensor(mask[1:], dtype=torch.bool)
            total += torch.nn.functional.cross_entropy(logits[wanted], torch.tensor(ids[1:])[wanted],
                                                       reduction='sum').item()
            targets += int(wanted.sum())
    return total / targets


def read_prompts(args):
    with open(args.data, encoding='utf-8') as file:
        messages = [json.loads(line)['messages'] for line in file]
    return [m[0]['content'] for m in messages if m[0]['role'] == 'user'][:args.prompts]


def draw(args, model, prompts):
    flags = ('--temperature=1', f'--max_new_tokens={args.new_tokens}')
    return [ask_thimble(args, 'generate', model, *flags, f'--seed={seed}', f'--prompt={prompt}')
            for seed, prompt in enumerate(prompts)]


def differences(model, tokenizer, prompts, answers):
    """Of the log-probabilities of the drawn tokens: those Thimble gave less those the model gives."""
    found = []
    with torch.no_grad():
        for prompt, answer in zip(prompts, answers):
            asked = tokenizer.apply_chat_template([{'role': 'user', 'content': prompt}], add_generation_prompt=True,
                                                  return_dict=False)
            if len(asked) != answer['prompt_tokens']:
                raise ValueError(f'{prompt!r}: {len(asked)} tokens here, {answer["prompt_tokens"]} in Thimble')
            drawn = torch.tensor(answer['tokens'])
            logits = model(input_ids=torch.tensor([asked + answer['tokens']])).logits[0, len(asked) - 1:-1]
            found.append(torch.tensor(answer['logprobs'], dtype=torch.float64) -
                         torch.log_softmax(logits.double(), -1).gather(1, drawn[:, None])[:, 0])
    found = torch.cat(found).abs()
    return {'largest': found.max().item(), 'mean': found.mean().item(), 'tokens': len(found)}


def load_adapter(args):
    from peft import PeftModel
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_use_double_quant=True,
                                bnb_4bit_compute_dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, quantization_config=config,
                                                device_map='cpu')
    return PeftModel.from_pretrained(base, args.adapter)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--thimble', default='build/release/thimble')
    parser.add_argument('--run', required=True)
    parser.add_argument('--data', required=True)
    parser.add_argument('--model', required=True, help='the base')
    parser.add_argument('--adapter', help='written by thimble export --format=peft')
    parser.add_argument('--max_rows', type=int, default=24)
    parser.add_argument('--prompts', type=int, default=4)
    parser.add_argument('--new_tokens', type=int, default=32)
    args = parser.parse_args()
    merged = os.path.join(args.run, 'model')
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    rows = encode_rows(tokenizer, args.data)[:args.max_rows]
    prompts = read_prompts(args)
    peers = {'merged': (merged, AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32))}
    if args.adapter:
        peers['adapter'] = (args.run, load_adapter(args))
    losses = {'thimble, run': thimble_loss(args, args.run), 'thimble, merged': thimble_loss(args, merged)}
    logprobs = {}
    for name, (mine, model) in peers.items():
        model.eval()
        losses[f'peer, {name}'] = peer_loss(model, rows)
        logprobs[name] = differences(model, tokenizer, prompts, draw(args, mine, prompts))
    print(json.dumps({'losses': losses, 'differences of log-probabilities': logprobs}, indent=1))
    return 0


if __name__ == '__main__':
    sys.exit(main())
