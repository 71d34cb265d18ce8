"""The peer of step.ts: the same training step in PyTorch, compiled, in bfloat16 with float32 master weights.

Prints {"ms": milliseconds of a step in the median series, "name": "PyTorch VERSION compiled"}.
"""

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, d, heads, ff):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(d), nn.RMSNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.up, self.down = nn.Linear(d, 2 * ff, bias=False), nn.Linear(ff, d, bias=False)

    def forward(self, x, cos, sin):
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3 * self.heads, -1).transpose(1, 2).chunk(3, 1)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, d)
        x = x + self.out(y)
        gate, up = self.up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


def rotate(x, cos, sin):
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2).type_as(x)


class Model(nn.Module):
    def __init__(self, o):
        super().__init__()
        self.embedding = nn.Embedding(o.vocab, o.d)
        self.blocks = nn.ModuleList(Block(o.d, o.heads, o.ff) for _ in range(o.layers))
        self.norm, self.head = nn.RMSNorm(o.d), nn.Linear(o.d, o.vocab, bias=False)
        dim = o.d // o.heads
        angles = torch.arange(o.ctx)[:, None] * 10000.0 ** (-torch.arange(0, dim, 2) / dim)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens, targets):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1).float(), targets.flatten())


def main():
    parser = argparse.ArgumentParser()
    for name in ("vocab", "ctx", "d", "layers", "heads", "ff", "batch", "steps", "series"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--device", default="cuda")
    o = parser.parse_args()
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    with torch.device(o.device):
        model = Model(o)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    compiled = torch.compile(model)
    wait = torch.cuda.synchronize if o.device == "cuda" else lambda: None
    batches = [torch.randint(o.vocab, (o.batch, o.ctx + 1), device=o.device) for _ in range(4)]

    def run(count):
        wait()
        started = time.perf_counter()
        for i in range(count):
            tokens = batches[i % 4]
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(o.device, dtype=torch.bfloat16):
                loss = compiled(tokens[:, :-1], tokens[:, 1:])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        wait()
        return (time.perf_counter() - started) * 1e3 / count

    run(5)
    ms = statistics.median(run(o.steps) for _ in range(o.series))
    print(json.dumps({"ms": ms, "name": f"PyTorch {torch.__version__} compiled"}))


if __name__ == "__main__":
    main()
