#!/usr/bin/env python3
"""Makes the text of the ternary experiment: train.jsonl and valid.jsonl, rows {"text": ...}.

    make_corpus.py --assets=shared/assets --out=FOLDER [--train_bytes=N]

Sources: a sample of TinyStories (its last 5% is for validation) and books in the public domain, cut at paragraphs into
pieces under 2 kB, shuffled and spread evenly, so that any stretch of a run sees the same mix and every run sees each
text once. Validation books are other books. Standard library and the `zstd` program; the same input gives the same bytes.
"""

import argparse
import os
import random
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'quickstart'))
import make_corpus as quickstart  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--assets', required=True)
    parser.add_argument('--out', required=True)
    parser.add_argument('--train_bytes', type=int, default=66_000_000)
    args = parser.parse_args()
    rng = random.Random(1)

    stories = quickstart.read_tinystories(args.assets)
    keep = len(stories) * 95 // 100
    books = quickstart.read_books(args.assets, [f'books-0{i}.jsonl.zst' for i in range(4)], set())
    other_books = quickstart.read_books(args.assets, ['books-valid.jsonl.zst'], set())
    rng.shuffle(books)
    kept, total = [], 0
    for piece in books:
        total += len(piece.encode())
        if total > args.train_bytes:
            break
        kept.append(piece)
    rng.shuffle(other_books)
    os.makedirs(args.out, exist_ok=True)
    groups = {'TinyStories': stories[:keep], 'books': kept}
    for name, group in groups.items():
        print(f'{name}: {len(group)} documents, {sum(len(text.encode()) for text in group):,} bytes')
    quickstart.write(os.path.join(args.out, 'train.jsonl'), quickstart.spread(rng, list(groups.values())))
    quickstart.write(os.path.join(args.out, 'valid.jsonl'), quickstart.spread(rng, [stories[keep:], other_books[:300]]))
    return 0


if __name__ == '__main__':
    sys.exit(main())
