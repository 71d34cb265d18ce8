"""Logits, ids and losses of Hugging Face directories. In: [{path, gguf?, prompts, texts?}]; out: the same, answered."""
import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

torch.manual_seed(0)
answers = []
for job in json.load(sys.stdin):
    more = {"gguf_file": job["gguf"]} if "gguf" in job else {}
    model = AutoModelForCausalLM.from_pretrained(
        job["path"], dtype=torch.float32, attn_implementation="eager", **more
    ).eval()
    answer = {"type": type(model).__name__, "logits": []}
    with torch.no_grad():
        for ids in job["prompts"]:
            answer["logits"].append(model(torch.tensor([ids])).logits[0].flatten().tolist())
        if "window" in job:
            # Mean cross-entropy over windows side by side, each with the token after it.
            ids, size = job["ids"], job["window"]
            losses = []
            for start in range(0, len(ids) - size, size):
                window = torch.tensor([ids[start : start + size + 1]])
                logits = model(window[:, :-1]).logits[0]
                losses.append(torch.nn.functional.cross_entropy(logits, window[0, 1:]).item())
            answer["loss"] = sum(losses) / len(losses)
    if "texts" in job:
        tokenizer = AutoTokenizer.from_pretrained(job["path"])
        answer["ids"] = [tokenizer.encode(text, add_special_tokens=False) for text in job["texts"]]
        answer["decoded"] = [tokenizer.decode(ids) for ids in answer["ids"]]
        answer["eos"] = tokenizer.eos_token
    answers.append(answer)
json.dump(answers, sys.stdout)
