"""safetensors and GGUF files as their own packages read them."""
import hashlib
import json
import sys

import gguf
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file


def stored(path):
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        return tensors, file.metadata()


def read_safetensors(job):
    tensors, metadata = stored(job["path"])
    return {
        "metadata": metadata,
        "tensors": {
            name: {"dtype": str(value.dtype), "shape": list(value.shape), "data": value.float().flatten().tolist()}
            for name, value in tensors.items()
        },
    }


class Number(str):
    """A number as it was written: 0.00001 shall not become 1e-05."""


def written(value):
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    return json.dumps(value)


def hash_checkpoint(job):
    """The hash of a checkpoint, as its format describes it."""
    tensors, metadata = stored(job["path"])
    manifest = json.loads(metadata["mantou.checkpoint"], parse_float=Number, parse_int=Number)
    fields = [manifest[key] for key in ("version", "iteration", "optimizerSteps")]
    about = written([*fields, [list(item) for item in sorted(manifest["model"].items())]])
    digest = hashlib.sha256(about.encode())
    header = open(job["path"], "rb").read()
    length = int.from_bytes(header[:8], "little")
    order = sorted(
        (item for item in json.loads(header[8 : 8 + length]).items() if item[0] != "__metadata__"),
        key=lambda item: item[1]["data_offsets"],
    )
    for name, _ in order:
        digest.update(tensors[name].numpy().tobytes())
    return {"computed": digest.hexdigest(), "manifest": manifest["sha256"]}


def write_safetensors(job):
    torch.manual_seed(1)
    tensors = {
        name: torch.randn(5, 7).to(getattr(torch, name)) for name in ("float32", "float16", "bfloat16", "float64")
    }
    save_file(tensors, job["path"], metadata={"note": "by safetensors"})
    return {name: value.float().flatten().tolist() for name, value in tensors.items()}


def read_gguf(job):
    reader = gguf.GGUFReader(job["path"])
    originals = stored(job["weights"])[0] if "weights" in job else {}
    report = {"fields": {key: field.contents() for key, field in reader.fields.items()}, "tensors": {}}
    for tensor in reader.tensors:
        kind = gguf.GGMLQuantizationType(tensor.tensor_type)
        values = gguf.quants.dequantize(tensor.data, kind)
        entry = {"type": kind.name, "shape": [int(size) for size in reversed(tensor.shape)]}
        name = job.get("names", {}).get(tensor.name)
        if name in originals:
            original = originals[name].numpy()
            expected = gguf.quants.quantize(original, kind)
            entry["same"] = bool(np.array_equal(expected.view(np.uint8).ravel(), tensor.data.view(np.uint8).ravel()))
            entry["error"] = float(np.abs(values.reshape(original.shape) - original).max())
        else:
            entry["data"] = values.flatten().tolist()
        report["tensors"][tensor.name] = entry
    return report


json.dump([globals()[job["do"]](job) for job in json.load(sys.stdin)], sys.stdout)
