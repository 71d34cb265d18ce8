"""Merges that tokenizers learns by GPT-2's pattern: {text, size} → {merges}."""
import json
import sys

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

request = json.load(sys.stdin)
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
trainer = trainers.BpeTrainer(
    vocab_size=request["size"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
)
tokenizer.train_from_iterator([request["text"]], trainer)
json.dump({"merges": json.loads(tokenizer.to_str())["model"]["merges"]}, sys.stdout)
