"""The model of bench/cpu/step.ts in PyTorch. Reads the shape from argv[1]; then every line asks for one mode and is
answered with the milliseconds of a median step. Modes: float32, float32 compiled, bfloat16, bfloat16 compiled. A line
with an object asks for a run of bench/cpu/race.ts and is answered with its seconds and steps."""
import json
import math
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

shape = json.loads(sys.argv[1])
vocab, ctx, d, heads = shape["vocab"], shape["ctx"], shape["d"], shape["heads"]


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x):
        return F.rms_norm(x, (d,), self.weight, 1e-5)


def linear(d_in, d_out):
    return nn.Linear(d_in, d_out, bias=False)


def rotate(x, cos, sin):
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = Norm(), Norm()
        self.qkv, self.out = linear(d, 3 * d), linear(d, d)
        self.up, self.down = linear(d, 2 * shape["ff"]), linear(shape["ff"], d)

    def forward(self, x, cos, sin):
        q, k, v = self.qkv(self.norm1(x)).view(*x.shape[:2], 3, heads, d // heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(x.shape))
        gate, up = self.up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(vocab, d)
        self.blocks = nn.ModuleList(Block() for _ in range(shape["layers"]))
        self.norm, self.head = Norm(), linear(d, vocab)
        frequencies = 10000.0 ** (-torch.arange(0, d // heads, 2) * heads / d)
        angles = torch.arange(ctx)[:, None] * frequencies
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens, targets):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return F.cross_entropy(self.head(self.norm(x)).float().view(-1, vocab), targets.view(-1))


runs = {}


def run(mode):
    if mode not in runs:
        model = Model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        runs[mode] = model, torch.compile(model) if "compiled" in mode else model, optimizer
    model, forward, optimizer = runs[mode]
    times = []
    for _ in range(shape["warmup"] + shape["steps"]):
        tokens = torch.randint(0, vocab, (2, shape["batch"], ctx))
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in mode):
            loss = forward(tokens[0], tokens[1])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(1000 * (time.perf_counter() - start))
    return sorted(times[shape["warmup"] :])[shape["steps"] // 2]


def batch_of(ids, generator):
    starts = torch.randint(0, len(ids) - ctx, (shape["batch"],), generator=generator)
    rows = torch.stack([ids[start : start + ctx + 1] for start in starts.tolist()])
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def race(asked):
    text = torch.frombuffer(bytearray(open(asked["data"], "rb").read()), dtype=torch.uint8)
    ids = torch.searchsorted(text.unique(), text)
    train, held = ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]
    torch.manual_seed(asked["seed"])
    model = Model()
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            std = 1 if name.startswith("embedding") else (2 / sum(weight.shape)) ** 0.5
            nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std)
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
    forward = torch.compile(model) if "compiled" in asked["mode"] else model
    fixed = torch.Generator().manual_seed(0)
    validation = [batch_of(held, fixed) for _ in range(asked["evalBatches"])]

    def loss_of(batch):
        with torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in asked["mode"]):
            return forward(*batch)

    for _ in range(3):  # compiles
        loss_of(validation[0]).backward()
    model.load_state_dict(initial)
    optimizer.zero_grad()
    with torch.no_grad():
        loss_of(validation[0])
    seconds = 0
    for step in range(1, asked["steps"] + 1):
        start = time.perf_counter()
        done = (step - asked["warmup"]) / (asked["steps"] - asked["warmup"])
        cosine = 0.1 + 0.45 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = asked["lr"] * (step / asked["warmup"] if step <= asked["warmup"] else cosine)
        loss_of(batch_of(train, None)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds += time.perf_counter() - start
        if step % asked["evalInterval"] == 0:
            with torch.no_grad():
                loss = sum(loss_of(batch).item() for batch in validation) / len(validation)
            if loss <= asked["target"]:
                break
    return {"seconds": seconds, "step": step}


torch.set_num_threads(shape["threads"])
print(json.dumps(f"PyTorch {torch.__version__}"), flush=True)
for line in sys.stdin:
    question = json.loads(line)
    print(json.dumps(race(question) if isinstance(question, dict) else run(question)), flush=True)
