"""One measurement of a Python peer; prints JSON. Started by run.ts.

Usage: peers.py tiktoken TEXT MEGABYTES GPT2_RANKS | peers.py train TEXT THREADS
       peers.py file TEXT GPT2_RANKS OUT: encodes a file into one of 16-bit ids, as a command line does
"""
import base64
import json
import os
import sys
import time

job, path, *rest = sys.argv[1:]
if job in ("tiktoken", "file"):
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str

    ranks = {base64.b64decode(t): int(r) for t, r in (line.split() for line in open(rest[1] if job == "tiktoken" else rest[0]))}
    encoding = tiktoken.Encoding("gpt2x", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={})
    if job == "file":
        import numpy

        with open(rest[1], "wb") as out, open(path, encoding="utf-8") as file:
            numpy.array(encoding.encode_ordinary(file.read()), dtype=numpy.uint16).tofile(out)
        sys.exit()
    text = open(path, "rb").read()[: int(float(rest[0]) * 1e6)].decode(errors="ignore")
    size = len(text.encode()) / 1e6
    result = {"version": tiktoken.__version__}
    for name in ("first", "second"):
        start = time.perf_counter()
        result["tokens"] = len(encoding.encode_ordinary(text))
        result[name] = size / (time.perf_counter() - start)
else:
    os.environ["RAYON_NUM_THREADS"] = rest[0]
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=32768, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    start = time.perf_counter()
    tokenizer.train([path], trainer)
    result = {"version": tokenizers.__version__, "seconds": time.perf_counter() - start}
print(json.dumps(result))
