"""A BPE model that SentencePiece itself trains, and transformers' tokenizer.json of it: {text, folder} → its pieces."""
import json
import os
import sys

import sentencepiece
from transformers import LlamaTokenizerFast

request = json.load(sys.stdin)
folder = request["folder"]
model = os.path.join(folder, "tokenizer.model")
with open(model, "wb") as file:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(request["text"].split("\n")),
        model_writer=file,
        model_type="bpe",
        vocab_size=800,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
LlamaTokenizerFast.from_pretrained(folder).save_pretrained(folder)
processor = sentencepiece.SentencePieceProcessor(model_file=model)
ids = range(processor.get_piece_size())


def kind(token):
    """llama.cpp's number."""
    if processor.is_unknown(token):
        return 2
    return 3 if processor.is_control(token) else 6 if processor.is_byte(token) else 1


json.dump(
    {
        "tokens": [processor.id_to_piece(token) for token in ids],
        "scores": [processor.get_score(token) for token in ids],
        "types": [kind(token) for token in ids],
    },
    sys.stdout,
)
