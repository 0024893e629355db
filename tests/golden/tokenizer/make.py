"""Makes pipelines.json: ids and decodings of small tokenizers with every supported part, from `tokenizers` 0.23.3.

    python make.py [seed [pipelines [texts]]] > pipelines.json
"""
import json
import random
import sys

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

TEXTS = [
    "", " ", "hello world", " hello  world ", "Hello World's it's IT'S", "a-b--c", "-a-", "12 345,6 \u00bd \u0663\u2167x9",
    "line\nline\n\n  x\r\n\t y", "caf\u00e9 cafe\u0301 \u00c5ngstr\u00f6m \u212b", "\uac00\u1100\u1161\u11a8 \ufb01 \u2460",
    "\u0130stanbul \u1e9e \u03a3\u03a3", "\u4f60\u597d\u4e16\u754c \U0001f600\U0001f468\u200d\U0001f469", "<s>hello</s> world<mask>end",
    "<mask> a<mask>b <mask>", "  <mask>  x", "hellohello  hello, hello.", "HELLO <S> hello", "\u2581hello \u2581\u2581",
    "a\u0328\u0301 a\u0301\u0328 \u0061\u0897\u0334", "x" * 60 + "-" * 9, " \u00a0\u3000 \u180e tail ",
]
WORDS = TEXTS + list("abc -\u2581'<>") + ["  ", "\n", "12", "<mask>", "<s>", "\u0301", "\u00e9", "\u1100\u1161"]
REGEXES = [r"\s+", r"\w+|[^\w\s]+", r"\p{L}+", r"\d", r"[aeiou]", r"(?i:HE)|l+", r" ?[^\s\p{L}\p{N}]+", r"(?=l)", r"\bw",
           r"[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}"]


def model(byte_level):
    corpus = [t for t in TEXTS if t] * 3 + ["hello world hello there a-b caf\u00e9 12 345"] * 20
    if byte_level:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                      show_progress=False)
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        pieces = ["<unk>", "<s>", "</s>"] + ["<0x%02X>" % b for b in range(256) if b != 0x9F]
        trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=pieces, limit_alphabet=40, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    return json.loads(tokenizer.to_str())["model"]


def pattern(rng):
    if rng.random() < 0.5:
        return {"String": rng.choice(["-", " ", "l", "he", "--"])}
    return {"Regex": rng.choice(REGEXES)}


def normalizer(rng):
    kind = rng.choice(["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Strip", "Prepend", "Replace"])
    out = {"type": kind}
    if kind == "Strip":
        out.update(strip_left=rng.random() < 0.5, strip_right=rng.random() < 0.5)
    if kind == "Prepend":
        out["prepend"] = rng.choice(["\u2581", "x"])
    if kind == "Replace":
        out.update(pattern=pattern(rng), content=rng.choice(["", "\u2581", "zz"]))
    return out


def pre_tokenizer(rng):
    kind = rng.choice(["ByteLevel", "Split", "Split", "Metaspace", "Digits"])
    out = {"type": kind}
    if kind == "ByteLevel":
        out.update(add_prefix_space=rng.random() < 0.4, trim_offsets=True, use_regex=rng.random() < 0.5)
    if kind == "Split":
        out.update(pattern=pattern(rng), invert=rng.random() < 0.3, behavior=rng.choice(
            ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]))
    if kind == "Metaspace":
        out.update(replacement="\u2581", prepend_scheme=rng.choice(["first", "never", "always"]), split=rng.random() < 0.5)
    if kind == "Digits":
        out["individual_digits"] = rng.random() < 0.5
    return out


def decoder(rng):
    kind = rng.choice(["ByteFallback", "Fuse", "Replace", "Strip", "Metaspace", "ByteLevel", "BPEDecoder"])
    out = {"type": kind}
    if kind == "Replace":
        out.update(pattern={"String": rng.choice(["\u2581", "l"])}, content=" ")
    if kind == "Strip":
        out.update(content=rng.choice([" ", "h"]), start=rng.randint(0, 2), stop=0)
    if kind == "Metaspace":
        out.update(replacement="\u2581", prepend_scheme=rng.choice(["first", "never", "always"]), split=True)
    if kind == "ByteLevel":
        out.update(add_prefix_space=True, trim_offsets=True, use_regex=True)
    if kind == "BPEDecoder":
        out["suffix"] = rng.choice(["\u2581", "lo"])
    return out


def sequence(rng, part, name, most):
    count = rng.randint(0, most)
    if count == 0:
        return None
    if count == 1:
        return part(rng)
    return {"type": "Sequence", name: [part(rng) for _ in range(count)]}


def flags(rng):
    return {key: rng.random() < 0.4 for key in ("single_word", "lstrip", "rstrip", "normalized")}


def pipeline(rng, models_by_name):
    name = rng.choice(sorted(models_by_name))
    vocab = models_by_name[name]["vocab"]
    mask = vocab.get("<mask>", len(vocab))
    added = [{"id": mask, "content": "<mask>", "special": True, **flags(rng)}]
    if "<s>" in vocab:
        added.insert(0, {"id": vocab["<s>"], "content": "<s>", "special": True, **flags(rng)})
    if rng.random() < 0.5:
        ello = vocab.get("ello", len(vocab) + (mask == len(vocab)))
        added.append({"id": ello, "content": "ello", "special": False, **flags(rng)})
    options = {"fuse_unk": rng.random() < 0.5, "ignore_merges": rng.random() < 0.3}
    options["byte_fallback"] = name == "pieces" and rng.random() < 0.7
    post = None
    if rng.random() < 0.4:
        post = {"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": "<mask>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<mask>": {"id": "<mask>", "ids": [mask], "tokens": ["<mask>"]}}}
    pre = sequence(rng, pre_tokenizer, "pretokenizers", 3)
    if name == "bytes" and rng.random() < 0.7:  # mostly as published files are: byte level comes last
        last = {"type": "ByteLevel", "add_prefix_space": rng.random() < 0.2, "trim_offsets": True, "use_regex": False}
        parts = (pre["pretokenizers"] if pre and pre["type"] == "Sequence" else [pre] if pre else []) + [last]
        pre = {"type": "Sequence", "pretokenizers": parts}
    return {"model": name, "options": options, "parts": {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": sequence(rng, normalizer, "normalizers", 3), "pre_tokenizer": pre, "post_processor": post,
        "decoder": sequence(rng, decoder, "decoders", 4)}}


def tokenizer_file(case, models_by_name):
    file = dict(case["parts"])
    file["model"] = {**models_by_name[case["model"]], **case["options"]}
    return file


def main():
    seed, pipelines, random_texts = [int(x) for x in sys.argv[1:]] + [1, 48, 4][len(sys.argv) - 1:]
    rng = random.Random(seed)
    models_by_name = {"bytes": model(True), "pieces": model(False)}
    texts = TEXTS + ["".join(rng.choice(WORDS) for _ in range(rng.randint(2, 7))) for _ in range(random_texts)]
    cases = []
    for _ in range(pipelines):
        case = pipeline(rng, models_by_name)
        parts = json.dumps(case["parts"])
        if '"first"' in parts and '"Replace"' in parts:  # the known difference, see PreTokenizer
            continue
        try:
            tokenizer = Tokenizer.from_str(json.dumps(tokenizer_file(case, models_by_name)))
            case["ids"] = [tokenizer.encode(text).ids for text in texts]
        except BaseException as error:  # a pair of options it refuses, or a panic of the package
            print("left out:", error, file=sys.stderr)
            continue
        # Added tokens with "normalized" are left out of decoding: 0.23 gives their normalised text, see Decode.
        special = {token["id"] for token in case["parts"]["added_tokens"]}
        try:
            case["decoded"] = [tokenizer.decode([i for i in ids if i not in special], skip_special_tokens=False)
                               for ids in case["ids"]]
        except BaseException as error:  # a panic of the package: Strip of more characters than there are
            print("left out:", error, file=sys.stderr)
            continue
        cases.append(case)
    print(json.dumps({"texts": texts, "models": models_by_name, "cases": cases}, separators=(",", ":")))


if __name__ == "__main__":
    main()
