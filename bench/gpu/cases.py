"""Every operation of the C ABI with its values in float64.

Each case gives (run, expected): run makes the outputs anew, expected is what they are in float64.
"""

import math

import torch
import torch.nn.functional as F

from library import Bench, rotation


def rotate(x, table):
    """x [..., T, dim] in float64, pairs (2i, 2i + 1) turned by table [T, dim / 2, 2]."""
    pairs, (cos, sin) = x.unflatten(-1, (-1, 2)), table.double().unbind(-1)
    a, b = pairs.unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


def rmsnorm(b, rows, dim):
    x, residual, gain = b.normal(rows, dim), b.normal(rows, dim), b.normal(dim, scale=0.2) + 1
    dy, dsum = b.normal(rows, dim), b.normal(rows, dim)
    total = (x.float() + residual.float()).to(b.dtype)

    def run():
        given = [b.array(t) for t in (x, residual, gain)]
        sum_, y, rstd = b.blank(rows, dim), b.blank(rows, dim), b.blank(rows, dtype=torch.float32)
        b.call("mantou_rmsnorm_forward", b.code, rows, dim, 1e-5, *given, sum_, y, rstd)
        dx, dgain = b.blank(rows, dim), b.array(torch.zeros(dim))
        work = b.workspace("mantou_rmsnorm_backward_workspace", rows, dim)
        incoming = [b.array(dy), sum_, given[2], rstd, b.array(dsum)]
        b.call("mantou_rmsnorm_backward", b.code, rows, dim, *incoming, dx, dgain, work)
        return {"sum": sum_, "y": y, "dx": dx, "dgain": dgain}

    s, g = total.double().requires_grad_(), gain.double().requires_grad_()
    y = s * (s.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * g
    y.backward(dy.double())
    return run, {"sum": total, "y": y, "dx": s.grad + dsum.double(), "dgain": g.grad}


def swiglu(b, rows, dim):
    gate_up, dy = b.normal(rows, 2 * dim, scale=2), b.normal(rows, dim)

    def run():
        given, y, d = b.array(gate_up), b.blank(rows, dim), b.blank(rows, 2 * dim)
        b.call("mantou_swiglu_forward", b.code, rows, dim, given, y)
        b.call("mantou_swiglu_backward", b.code, rows, dim, b.array(dy), given, d)
        return {"y": y, "d": d}

    x = gate_up.double().requires_grad_()
    y = F.silu(x[:, :dim]) * x[:, dim:]
    y.backward(dy.double())
    return run, {"y": y, "d": x.grad}


def cross_entropy(b, rows, vocab, stride, cap=0.0, z_loss=0.0):
    logits, targets = b.normal(rows, stride, scale=3), b.integers(vocab, rows)

    def run():
        values, losses = b.array(logits), b.blank(rows, dtype=torch.float32)
        b.call("mantou_cross_entropy", b.code, rows, vocab, values, stride, b.array(targets), cap, z_loss, 1 / rows, losses)
        return {"losses": losses, "gradient": values}

    x = logits.double().requires_grad_()
    z = cap * torch.tanh(x[:, :vocab] / cap) if cap > 0 else x[:, :vocab]
    losses = F.cross_entropy(z, targets.long(), reduction="none")
    (losses + z_loss * torch.logsumexp(z, -1).square()).mean().backward()
    return run, {"losses": losses, "gradient": x.grad}


def embedding(b, rows, vocab, dim):
    tokens, weight, dy = b.integers(vocab, rows), b.normal(vocab, dim), b.normal(rows, dim)

    def run():
        ids, y, d = b.array(tokens), b.blank(rows, dim), b.array(torch.ones(vocab, dim))
        b.call("mantou_embedding_forward", b.code, rows, vocab, dim, ids, b.array(weight), y)
        work = b.workspace("mantou_embedding_backward_workspace", rows, vocab, dim)
        b.call("mantou_embedding_backward", b.code, rows, vocab, dim, ids, b.array(dy), d, work)
        return {"y": y, "d": d}

    d = torch.ones(vocab, dim, dtype=torch.double).index_add_(0, tokens.long(), dy.double())
    return run, {"y": weight[tokens.long()], "d": d}


def adamw(b, count):
    w, g = b.normal(count, dtype=torch.float32), b.normal(count, dtype=torch.float32)
    m, v = b.normal(count, dtype=torch.float32), b.normal(count, dtype=torch.float32).abs()
    lr, b1, b2, eps, decay, limit, step = 0.01, 0.9, 0.95, 1e-8, 0.1, 1.0, 3
    c1, c2 = 1 - b1**step, 1 - b2**step

    def run():
        master, gradient, first, second = [b.array(t) for t in (w, g, m, v)]
        weights = master if b.dtype == torch.float32 else b.array(w.bfloat16())
        norm, work = b.blank(2, dtype=torch.float32), b.workspace("mantou_gradient_norm_workspace", count)
        b.call("mantou_gradient_norm", count, gradient, limit, 1e-6, norm, work)
        scalars, ends = b.array(torch.tensor([lr, c1, c2])), b.array(torch.tensor([count // 2, count]))
        decays, copy = b.array(torch.tensor([decay, 0.0])), None if b.dtype == torch.float32 else master
        state = [weights, copy, gradient, first, second, scalars, norm.address + 4]
        b.call("mantou_adamw", b.code, count, *state, b1, b2, eps, 2, ends, decays)
        return {"weights": weights, "first": first, "second": second, "norm": norm}

    norm = g.double().norm()
    gradient = g.double() * min(1.0, limit / (norm + 1e-6))
    first, second = b1 * m.double() + (1 - b1) * gradient, b2 * v.double() + (1 - b2) * gradient**2
    keep = 1 - lr * torch.where(torch.arange(count) < count // 2, decay, 0.0).double()
    weights = w.double() * keep - lr * (first / c1) / ((second / c2).sqrt() + eps)
    factor = min(1.0, limit / (norm + 1e-6))
    return run, {"weights": weights, "first": first, "second": second, "norm": torch.tensor([norm, factor])}


def matmul(b, m, n, k, ta, tb):
    a = b.normal(*((k, m) if ta else (m, k)), scale=k**-0.5)
    c = b.normal(*((n, k) if tb else (k, n)))

    def run():
        left, right, out, sums = b.array(a), b.array(c), b.blank(m, n), b.array(torch.ones(m, n))
        for result, code, add in ((out, b.code, 0), (sums, 0, 1)):
            operands = [left, a.shape[1], right, c.shape[1]]
            b.call("mantou_matmul", ta, tb, m, n, k, b.code, *operands, code, result, n, add)
        return {"product": out, "added": sums}

    product = (a.double().T if ta else a.double()) @ (c.double().T if tb else c.double())
    return run, {"product": product, "added": product + 1}


def attention(b, batch, length, heads, kv_heads, dim):
    width, rows, scale = (heads + 2 * kv_heads) * dim, batch * length, dim**-0.5
    qkv, dy, table = b.normal(rows, width), b.normal(rows, heads * dim), rotation(length, dim)
    offsets = [0, heads * dim, (heads + kv_heads) * dim]

    def run():
        given, rope, size = b.array(qkv), b.array(table), qkv.element_size()
        y, lse, d = b.blank(rows, heads * dim), b.blank(batch, heads, length, dtype=torch.float32), b.blank(rows, width)
        q, k, v = [given.address + o * size for o in offsets]
        dq, dk, dv = [d.address + o * size for o in offsets]
        sizes = [b.code, batch, length, heads, kv_heads, dim, scale]
        first = b.call("mantou_attention_rotate_first", length)
        if first:
            b.call("mantou_rope", b.code, rows, length, heads + kv_heads, dim, rope, None, q, width, q, width, 0)
        b.call("mantou_attention_forward", *sizes, q, width, k, v, width, None if first else rope, None, y, lse)
        work = b.workspace("mantou_attention_backward_workspace", *sizes[1:6])
        inputs = [b.array(dy), q, width, k, v, width, rope, None, first, y, lse]
        b.call("mantou_attention_backward", *sizes, *inputs, dq, dk, dv, work)
        return {"y": y, "lse": lse, "d": d}

    x = qkv.double().requires_grad_()
    parts = x.view(batch, length, heads + 2 * kv_heads, dim).transpose(1, 2)
    q, k, v = parts.split([heads, kv_heads, kv_heads], 1)
    q, k = rotate(q, table), rotate(k, table).repeat_interleave(heads // kv_heads, 1)
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
    y = scores.softmax(-1) @ v.repeat_interleave(heads // kv_heads, 1)
    y = y.transpose(1, 2).reshape(rows, heads * dim)
    y.backward(dy.double())
    return run, {"y": y, "lse": scores.logsumexp(-1), "d": x.grad}


def attention_cached(b, heads, kv_heads, dim, capacity, starts):
    """One new token for each sequence, behind as many keys as `starts` says; without RoPE."""
    batch, width = len(starts), (heads + 2 * kv_heads) * dim
    qkv, caches = b.normal(batch, width), [b.normal(batch, capacity, kv_heads, dim) for _ in range(2)]
    offsets = [0, heads * dim, (heads + kv_heads) * dim]

    def run():
        given, y, (k_cache, v_cache) = b.array(qkv), b.blank(batch, heads * dim), [b.array(cache) for cache in caches]
        q, k, v = [given.address + o * qkv.element_size() for o in offsets]
        places = [b.array(torch.tensor(starts, dtype=torch.int32)), None, batch, capacity]
        sizes = [b.code, batch, 1, *places, heads, kv_heads, dim, dim**-0.5]
        b.call("mantou_attention_cached", *sizes, q, width, k, v, width, None, k_cache, v_cache, y)
        return {"y": y}

    outputs = []
    for i, start in enumerate(starts):
        q, *new = qkv[i].double().view(-1, dim).split([heads, kv_heads, kv_heads])
        k, v = [torch.cat([cache[i, :start].double(), row[None]]).repeat_interleave(heads // kv_heads, 1) for cache, row in zip(caches, new)]
        weights = torch.einsum("hd,khd->hk", q, k).mul(dim**-0.5).softmax(-1)
        outputs.append(torch.einsum("hk,khd->hd", weights, v).flatten())
    return run, {"y": torch.stack(outputs)}


def cases(big):
    for rows, dim in [(1, 8), (37, 64), (113, 203), (5, 1000), (3, 4104)] + ([(4099, 768)] if big else []):
        yield f"RMSNorm [{rows}, {dim}]", rmsnorm, (rows, dim)
    for rows, dim in [(1, 8), (65, 113), (7, 1344)] + ([(4099, 1344)] if big else []):
        yield f"SwiGLU [{rows}, {dim}]", swiglu, (rows, dim)
    for rows, vocab, stride in [(3, 17, 17), (65, 113, 128), (3, 10_000, 10_112)] + ([(2049, 50_257, 50_304)] if big else []):
        yield f"cross-entropy [{rows}, {vocab}]", cross_entropy, (rows, vocab, stride)
    for rows, vocab, stride in [(65, 113, 128), (3, 10_000, 10_112)]:
        yield f"cross-entropy [{rows}, {vocab}], soft cap and z-loss", cross_entropy, (rows, vocab, stride, 2.0, 1e-2)
    for rows, vocab, dim in [(17, 3, 65), (2000, 7, 64), (300, 1000, 128)] + ([(16_384, 10_000, 512)] if big else []):
        yield f"embedding {rows} of [{vocab}, {dim}]", embedding, (rows, vocab, dim)
    for count in [1, 4099, 40_000]:
        yield f"AdamW {count}", adamw, (count,)
    for m, n, k in [(1, 3, 17), (65, 130, 96), (128, 256, 64), (113, 203, 65)] + ([(1024, 1023, 1024)] if big else []):
        for ta in (0, 1):
            for tb in (0, 1):
                yield f"matmul {m} x {n} x {k}, {'NT'[ta]}{'NT'[tb]}", matmul, (m, n, k, ta, tb)
    for dim in (16, 32, 64, 128):
        for length in [1, 64, 77, 260] + ([193, 1024, 2047] if big else []):
            yield f"attention T = {length}, head {dim}", attention, (2, length, 4, 2, dim)
    for dim in (16, 64, 128):
        for capacity, starts in [(300, [0, 31, 256, 299]), (1100, [0, 255, 256, 1023, 1099])]:
            yield f"attention with a cache of {capacity}, head {dim}", attention_cached, (4, 2, dim, capacity, starts)
    if big:
        yield "attention T = 8192, head 64", attention, (1, 8192, 1, 1, 64)
        yield "attention with a cache of 40000, head 128", attention_cached, (2, 1, 128, 40_000, [39_999])


def relative(actual, expected):
    actual, expected = actual.double().flatten(), expected.detach().double().flatten()
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-30))


def judge(library, place, name, make, sizes, dtype):
    """What is wrong with one case in one type, and its largest relative error."""
    run, expected = make(Bench(library, dtype, place), *sizes)
    outputs = [{key: array.tensor(place) for key, array in run().items()} for _ in range(2)]
    label, wrong, worst = f"{name}, {str(dtype).removeprefix('torch.')}", [], 0.0
    # bfloat16 keeps eight bits: 2^-9 at most per rounding, and a few of them on the way.
    allowed = 2e-5 if dtype == torch.float32 else 1e-2
    for key, values in outputs[0].items():
        error = relative(values, expected[key])
        worst = max(worst, error) if error == error else math.inf
        if not error <= allowed:
            wrong.append(f"{label}: {key} is off by {error:.2e} (allowed {allowed:.0e})")
        if not torch.equal(values.view(torch.uint8), outputs[1][key].view(torch.uint8)):
            wrong.append(f"{label}: two runs give different bits of {key}")
    return wrong, worst
