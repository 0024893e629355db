#!/usr/bin/env python3
"""Asks Thimble and transformers the same of an exported model: the loss over held-out rows.

    check_export.py --thimble=PROGRAM --run=RUN --data=ROWS.jsonl --model=FOLDER [--adapter=FOLDER] [--max_rows=24]

RUN is a finished run with a merged model in RUN/model. `thimble eval` measures the trained run and the merged folder
(in f32); transformers measures the merged folder in f32 and, with --adapter, PEFT measures the adapter on the 4-bit
base. Prints JSON: the loss of each in nats a target token. Rounding the merged weights to bf16 separates run and merged
folder; beside that, the two programs agree to within f32 rounding.
"""

import argparse
import json
import os
import subprocess
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from compare import encode_rows


def thimble_loss(args, model):
    command = [args.thimble, 'eval', model, f'--data={args.data}', f'--max_rows={args.max_rows}', '--json']
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)['loss']


def peer_loss(model, rows):
    model.eval()
    total, targets = 0.0, 0
    with torch.no_grad():
        for ids, mask in rows:
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
            wanted = torch.tensor(mask[1:], dtype=torch.bool)
            total += torch.nn.functional.cross_entropy(logits[wanted], torch.tensor(ids[1:])[wanted],
                                                       reduction='sum').item()
            targets += int(wanted.sum())
    return total / targets


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--thimble', default='build/release/thimble')
    parser.add_argument('--run', required=True)
    parser.add_argument('--data', required=True)
    parser.add_argument('--model', required=True, help='the base')
    parser.add_argument('--adapter', help='written by thimble export --format=peft')
    parser.add_argument('--max_rows', type=int, default=24)
    args = parser.parse_args()
    merged = os.path.join(args.run, 'model')
    rows = encode_rows(AutoTokenizer.from_pretrained(args.model), args.data)[:args.max_rows]
    exported = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    losses = {'thimble, run': thimble_loss(args, args.run), 'thimble, merged': thimble_loss(args, merged),
              'transformers, merged': peer_loss(exported, rows)}
    if args.adapter:
        from peft import PeftModel
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_use_double_quant=True,
                                    bnb_4bit_compute_dtype=torch.float32)
        base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, quantization_config=config,
                                                    device_map='cpu')
        losses['peft, adapter'] = peer_loss(PeftModel.from_pretrained(base, args.adapter), rows)
    print(json.dumps(losses, indent=1))
    return 0


if __name__ == '__main__':
    sys.exit(main())
