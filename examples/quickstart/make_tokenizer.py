#!/usr/bin/env python3
"""Trains the embedded base's tokenizer: byte-level BPE of 4,096 tokens, digits one by one, ChatML turns.

    make_tokenizer.py --corpus=FOLDER      (needs the Python package `tokenizers`; writes into base/)

Ids 0, 1 and 2 are <|endoftext|> (end of text and padding), <|im_start|> and <|im_end|>.
"""

import argparse
import json
import os
import sys

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'base')
SPECIAL = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
CHAT_TEMPLATE = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
                 "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
                 "{% endif %}")


def read_texts(path):
    with open(path, encoding='utf-8') as f:
        return [json.loads(line)['text'] for line in f]


def write_json(name, value):
    with open(os.path.join(OUT, name), 'w', encoding='utf-8') as f:
        json.dump(value, f, indent=2)
        f.write('\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--corpus', required=True)
    args = parser.parse_args()
    texts = read_texts(os.path.join(args.corpus, 'train.jsonl'))
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=4096, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    plain = [text.replace('<|im_start|>', '').replace('<|im_end|>', '') for text in texts]
    tokenizer.train_from_iterator(plain, trainer)
    os.makedirs(OUT, exist_ok=True)
    tokenizer.save(os.path.join(OUT, 'tokenizer.json'))
    write_json('tokenizer_config.json', {
        'tokenizer_class': 'PreTrainedTokenizerFast', 'eos_token': '<|endoftext|>', 'pad_token': '<|endoftext|>',
        'bos_token': None, 'unk_token': None, 'additional_special_tokens': SPECIAL[1:], 'add_prefix_space': False,
        'clean_up_tokenization_spaces': False, 'model_max_length': 512, 'chat_template': CHAT_TEMPLATE})
    write_json('special_tokens_map.json', {'eos_token': '<|endoftext|>', 'pad_token': '<|endoftext|>',
                                           'additional_special_tokens': SPECIAL[1:]})
    write_json('generation_config.json', {'eos_token_id': [0, 2], 'pad_token_id': 0, 'do_sample': False})
    for name in ('train', 'valid'):
        texts = read_texts(os.path.join(args.corpus, name + '.jsonl'))
        size = sum(len(text.encode()) for text in texts)
        count = sum(len(e.ids) + 1 for e in tokenizer.encode_batch(texts))
        print(f'{name}: {len(texts)} documents, {size:,} bytes, {count:,} tokens with ends of text, '
              f'{size / count:.2f} bytes a token')
    return 0


if __name__ == '__main__':
    sys.exit(main())
