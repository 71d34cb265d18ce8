"""The shape of the tokenizers that transformers makes of SentencePiece's BPE models, as Llama 2 and TinyLlama ship them."""
import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def untrained(splits=True):
    """Without `splits` merges go across blanks."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    if splits:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=True)
    return tokenizer


def finished(tokenizer):
    """The file after training: no pre-tokenizer, and the bytes, given as special tokens, are tokens of the model."""
    file = json.loads(tokenizer.to_str())
    file["pre_tokenizer"] = None
    file["added_tokens"] = [token for token in file["added_tokens"] if token["content"] not in BYTES]
    return file
