"""Tokenizers in the shape of Llama 2's, trained by tokenizers itself: {text, folder} → their names.

"words" is the common one; "across" has merges that go across blanks; the rest are these two in the other spellings.
"""
import copy
import itertools
import json
import os
import sys

import sentencepiece_shape as sentencepiece
from tokenizers import Tokenizer, trainers

request = json.load(sys.stdin)
names = []


def train(splits):
    tokenizer = sentencepiece.untrained(splits)
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        special_tokens=["<unk>", "<s>", "</s>"] + sentencepiece.BYTES,
        show_progress=False,
    )
    tokenizer.train_from_iterator(request["text"].split("\n"), trainer)
    return sentencepiece.finished(tokenizer)


def save(name, file):
    path = os.path.join(request["folder"], f"{name}.json")
    with open(path, "w") as target:
        json.dump(file, target)
    Tokenizer.from_file(path)
    names.append(name)


words, across = train(True), train(False)
save("words", words)
save("across", across)
for (name, file), scheme, split in itertools.product(
    {"words": words, "across": across}.items(), ["always", "first", "never"], [True, False]
):
    spelled = copy.deepcopy(file)
    spelled["normalizer"] = None
    spelled["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": scheme,
        "split": split,
    }
    save(f"{name}-{scheme}-{'split' if split else 'whole'}", spelled)
normalized = copy.deepcopy(across)
for token in normalized["added_tokens"]:
    token["normalized"] = True
save("normalized", normalized)
bare = copy.deepcopy(words)
bare["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
bare["decoder"]["decoders"].pop()
save("bare", bare)
json.dump(names, sys.stdout)
