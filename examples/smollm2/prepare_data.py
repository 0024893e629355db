#!/usr/bin/env python3
"""Brings alpaca, code and mathematics rows into one form, mixes them and sets a held-out part apart.

    prepare_data.py --data=FOLDER --out=FOLDER [--rows=N] [--held_out=N] [--max_characters=N]

FOLDER holds alpaca_en_demo.json (LLaMA-Factory, Apache-2.0), gpteacher_codegen.json (GPTeacher, MIT) and
gsm8k_train.jsonl (GSM8K, MIT). Writes train.jsonl and valid.jsonl of {"messages": [...]}, a third of each kind as far
as they reach, in an order that depends on --seed alone. A prompt never stands in both files.
"""

import argparse
import json
import os
import random
import re
import sys

KINDS = ('alpaca', 'code', 'mathematics')


def read(path):
    with open(path, encoding='utf-8') as file:
        return [json.loads(line) for line in file] if path.endswith('.jsonl') else json.load(file)


def instruction(row):
    prompt = row['instruction'].strip()
    if row.get('input', '').strip():
        prompt += '\n\n' + row['input'].strip()
    return prompt, row.get('output', row.get('response', '')).strip()


def mathematics(row):
    # <<48/2=24>> are marks for a calculator, no text.
    return row['question'].strip(), re.sub(r'<<[^>]*>>', '', row['answer']).strip()


def pairs(folder, max_characters):
    sources = ((instruction, 'alpaca_en_demo.json'), (instruction, 'gpteacher_codegen.json'),
               (mathematics, 'gsm8k_train.jsonl'))
    seen = set()
    for kind, (form, name) in zip(KINDS, sources):
        for row in read(os.path.join(folder, name)):
            prompt, answer = form(row)
            if prompt and answer and prompt not in seen and len(prompt) + len(answer) <= max_characters:
                seen.add(prompt)
                yield kind, prompt, answer


def write(path, rows):
    with open(path, 'w', encoding='utf-8') as file:
        for _, prompt, answer in rows:
            messages = [{'role': 'user', 'content': prompt}, {'role': 'assistant', 'content': answer}]
            file.write(json.dumps({'messages': messages}, ensure_ascii=False) + '\n')
    counts = {kind: sum(row[0] == kind for row in rows) for kind in KINDS}
    print(f'{path}: {len(rows)} rows, {counts}')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True, help='folder of the three files')
    parser.add_argument('--out', required=True)
    parser.add_argument('--rows', type=int, default=2400, help='training rows')
    parser.add_argument('--held_out', type=int, default=120)
    parser.add_argument('--max_characters', type=int, default=1500, help='of prompt and answer together')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()

    generator = random.Random(args.seed)
    by_kind = {kind: [] for kind in KINDS}
    for row in pairs(args.data, args.max_characters):
        by_kind[row[0]].append(row)
    wanted = args.rows + args.held_out
    rows = []
    for kind in KINDS:
        generator.shuffle(by_kind[kind])
        rows += by_kind[kind][:-(-wanted // len(KINDS))]
    generator.shuffle(rows)
    if len(rows) <= args.held_out:
        print(f'only {len(rows)} rows are that short; give a larger --max_characters', file=sys.stderr)
        return 2
    os.makedirs(args.out, exist_ok=True)
    write(os.path.join(args.out, 'valid.jsonl'), rows[:args.held_out])
    write(os.path.join(args.out, 'train.jsonl'), rows[args.held_out:wanted])
    return 0


if __name__ == '__main__':
    sys.exit(main())
