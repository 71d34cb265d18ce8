"""Small Llama models with random weights and tokenizers, as transformers and tokenizers make and save them."""
import json
import sys
from pathlib import Path

import sentencepiece_shape as sentencepiece
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
PRE_TOKENIZERS = {
    "gpt2": BYTE_LEVEL,
    "llama3": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL]),
}

request = json.load(sys.stdin)
for index, job in enumerate(request["models"]):
    torch.manual_seed(index)
    path = Path(job["path"])
    is_byte_level = job["tokenizer"] != "llama2"
    if is_byte_level:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = PRE_TOKENIZERS[job["tokenizer"]]
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer = sentencepiece.untrained()
    special = [AddedToken(text, special=True) for text in job["special"]]
    trainer = trainers.BpeTrainer(
        vocab_size=job["config"]["vocab_size"] - 3,
        special_tokens=special if is_byte_level else job["special"] + sentencepiece.BYTES,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if is_byte_level else [],
        show_progress=False,
    )
    tokenizer.train_from_iterator(request["text"], trainer)
    if not is_byte_level:
        tokenizer = Tokenizer.from_str(json.dumps(sentencepiece.finished(tokenizer)))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=job["special"][0]).save_pretrained(path)
    model = LlamaForCausalLM(LlamaConfig(**job["config"]))
    # Weights that matter: not near zero as a fresh model's, gains not all one.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 1.5 / parameter.shape[1] ** 0.5)
    model = model.to(getattr(torch, job["dtype"]))
    model.save_pretrained(path, max_shard_size=job.get("shard", "5GB"))
json.dump(sorted(each.name for each in path.iterdir()), sys.stdout)
