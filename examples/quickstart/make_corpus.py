#!/usr/bin/env python3
"""Makes the pretraining text of the embedded base model: train.jsonl and valid.jsonl, rows {"text": ...}.

    make_corpus.py --assets=shared/assets --out=FOLDER [--made_bytes=N]

Sources: a sample of TinyStories (its last 5% is for validation), simple books in the public domain, cut at paragraphs
into pieces under 2 kB, and made stories with retellings (make_stories.py). Documents of the three are spread evenly
through the file, so any stretch of a run sees the same mix. Documents with a name of the held-out stories are left
out. Standard library and the `zstd` program; the same input gives the same bytes.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys

import make_stories
import story_words

BOOKS = {
    'Abbie Farwell Brown/The Christmas Angel', 'Anna Sewell/Black Beauty', 'Anthony Hope/The Prisoner of Zenda',
    'Arthur Conan Doyle/The Hound of the Baskervilles', 'Beatrix Potter/Great Big Treasury of Beatrix Potter',
    'Carlo Collodi/The Adventures of Pinocchio', 'Charles Dickens/A Christmas Carol',
    'Edith Nesbit/The Book of Dragons', 'Frances Hodgson Burnett/The Secret Garden',
    'Gertrude Chandler Warner/The Boxcar Children', 'H.G. Wells/The Invisible Man', 'H.G. Wells/The Time Machine',
    'Hans Christian Andersen/The Little Mermaid', 'Horatio Alger/Andy Gordon', 'James Stephens/Irish Fairy Tales',
    'Jules Verne/Around the World in 80 Days', 'L. Frank Baum/The Marvelous Land of Oz',
    'Louisa May Alcott/Little Women', "Lucy Maud Montgomery/Anne's House of Dreams",
    'Mark Twain/Adventures of Huckleberry Finn', 'P.G. Wodehouse/My Man Jeeves',
    'Various/Christmas Stories from French and Spanish Writers', 'Willa Cather/O Pioneers!'}
PIECE_BYTES = 2000
HELDOUT_NAME = re.compile(r'\b(' + '|'.join(story_words.HELDOUT['names']) + r')\b')


def read_tinystories(assets):
    """The whole stories of the sample; the range cuts its first and last one."""
    with open(os.path.join(assets, 'datasets/tinystories_sample.txt'), encoding='utf-8', errors='ignore') as f:
        return [s.strip() for s in f.read().split('<|endoftext|>')[1:-1] if s.strip()]


def read_books(assets, names, sources):
    """Pieces of the books of `sources` (all if empty), in their order."""
    pieces = []
    for name in names:
        data = subprocess.run(['zstd', '-dc', os.path.join(assets, 'datasets', name)], check=True,
                              stdout=subprocess.PIPE).stdout
        for line in data.decode('utf-8').splitlines():
            row = json.loads(line)
            if not sources or row['source'] in sources:
                pieces += cut(row['text'])
    return pieces


def cut(text):
    """Pieces of whole paragraphs, under PIECE_BYTES; a longer paragraph is left out, and so is the title block."""
    text = re.sub(r'^Title:.*?-------\n', '', text, flags=re.S)
    pieces, piece = [], ''
    for paragraph in text.split('\n\n'):
        paragraph = ' '.join(paragraph.split())
        if len(piece) + len(paragraph) > PIECE_BYTES:
            pieces.append(piece)
            piece = ''
        if len(paragraph) <= PIECE_BYTES:
            piece = (piece + '\n' + paragraph).strip()
    return [p for p in pieces + [piece] if len(p) >= 200]


def made_stories(seed, size):
    rng, texts, total = random.Random(seed), [], 0
    while total < size:
        texts.append(make_stories.bulk_document(rng))
        total += len(texts[-1])
    return texts


def spread(rng, groups):
    """Shuffles each group and merges them so that each is spread evenly over the whole."""
    keyed = []
    for group in groups:
        rng.shuffle(group)
        keyed += [((i + rng.random()) / len(group), text) for i, text in enumerate(group)]
    return [text for _, text in sorted(keyed)]


def write(path, texts):
    with open(path, 'w', encoding='utf-8') as f:
        for text in texts:
            f.write(json.dumps({'text': text}, ensure_ascii=False) + '\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--assets', required=True)
    parser.add_argument('--out', required=True)
    parser.add_argument('--made_bytes', type=int, default=12_000_000)
    parser.add_argument('--seed', type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)

    stories = read_tinystories(args.assets)
    keep = len(stories) * 95 // 100
    books = read_books(args.assets, [f'books-0{i}.jsonl.zst' for i in range(4)], BOOKS)
    other_books = read_books(args.assets, ['books-valid.jsonl.zst'], set())
    made, other_made = made_stories(args.seed + 2000, args.made_bytes), made_stories(args.seed + 3000, 100_000)
    groups = {'TinyStories': stories[:keep], 'books': books, 'made stories': made}
    for name, group in groups.items():
        groups[name] = [text for text in group if not HELDOUT_NAME.search(text)]
        print(f'{name}: {len(groups[name])} documents, {sum(len(t.encode()) for t in groups[name]):,} bytes '
              f'({len(group) - len(groups[name])} with held-out names left out)')
    make_stories.verify(make_stories.read_rows('train.jsonl'), make_stories.read_rows('heldout.jsonl'),
                        sum(groups.values(), []))
    rng.shuffle(other_books)
    os.makedirs(args.out, exist_ok=True)
    write(os.path.join(args.out, 'train.jsonl'), spread(rng, list(groups.values())))
    write(os.path.join(args.out, 'valid.jsonl'), spread(rng, [stories[keep:], other_books[:60], other_made]))
    return 0


if __name__ == '__main__':
    sys.exit(main())
