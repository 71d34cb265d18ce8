"""What compare.ts asks tiktoken and Hugging Face's tokenizers for; writes ids as little-endian uint32.

Usage: peers.py tiktoken TEXT RANKS PATTERN OUT      (PATTERN: a name of tiktoken's, or a regular expression)
       peers.py huggingface TEXT TOKENIZER_JSON OUT
       peers.py train TEXT VOCAB_SIZE OUT            (writes a tokenizer.json)
"""
import base64
import json
import sys
import time

import numpy


def read(path):
    with open(path, encoding="utf-8", newline="") as file:
        return file.read()


def official_pattern(name):
    from tiktoken_ext import openai_public

    if name == "gpt2":
        return openai_public.r50k_pat_str
    # the constructors fetch the ranks; their patterns are what is wanted
    openai_public.load_tiktoken_bpe = lambda *_, **__: {}
    return {"cl100k": openai_public.cl100k_base, "o200k": openai_public.o200k_base}[name]()["pat_str"]


def finish(ids, version, seconds, out):
    numpy.array(ids, dtype="<u4").tofile(out)
    print(json.dumps({"version": version, "seconds": seconds}))


def main(job, text, *rest):
    text = read(text)
    if job == "tiktoken":
        import tiktoken

        path, pattern, out = rest
        ranks = {}
        for line in open(path):
            token, rank = line.split()
            ranks[base64.b64decode(token)] = int(rank)
        if pattern in ("gpt2", "cl100k", "o200k"):
            pattern = official_pattern(pattern)
        encoding = tiktoken.Encoding("peer", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        start = time.perf_counter()
        ids = encoding.encode_ordinary(text)
        finish(ids, tiktoken.__version__, time.perf_counter() - start, out)
        return
    import tokenizers

    if job == "huggingface":
        path, out = rest
        tokenizer = tokenizers.Tokenizer.from_file(path)
        start = time.perf_counter()
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        finish(ids, tokenizers.__version__, time.perf_counter() - start, out)
        return
    size, out = rest
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=int(size),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    start = time.perf_counter()
    tokenizer.train_from_iterator([text], trainer)
    seconds = time.perf_counter() - start
    tokenizer.save(out)
    print(json.dumps({"version": tokenizers.__version__, "seconds": seconds}))


main(*sys.argv[1:])
