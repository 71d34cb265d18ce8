"""Ids, starts (UTF-16 code units) and decoded texts that tokenizers has for a tokenizer.json: {path, texts} → [{…}]."""
import json
import sys

import tokenizers

request = json.load(sys.stdin)
tokenizer = tokenizers.Tokenizer.from_file(request["path"])
answers = []
for text in request["texts"]:
    encoding = tokenizer.encode(text, add_special_tokens=False)
    answers.append(
        {
            "ids": encoding.ids,
            "starts": [len(text[:start].encode("utf-16-le")) // 2 for start, _ in encoding.offsets],
            "decoded": tokenizer.decode(encoding.ids, skip_special_tokens=False),
        }
    )
json.dump(answers, sys.stdout)
