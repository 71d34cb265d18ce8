"""The CUDA kernels against PyTorch, through the C ABI alone: is every operation right, and how fast is it?

Usage: python bench/gpu/kernels.py LIBRARY [--results DIRECTORY] [--small] [--no-bench]

LIBRARY is libmantou.so as built from kernels/cuda; the emulated one serves too, without the benchmarks. Operations run on
random inputs, with outputs full of NaN beforehand, twice (the bits must be equal), and are compared with float64. The
benchmarks, which need a GPU and a PyTorch that sees it, time each operation and PyTorch's own beside it on the same card,
and the card's copy bandwidth and matrix rate.
"""

import argparse
import ctypes
import json
import math
import pathlib
import re
import statistics
import sys
import time

import torch
import torch.nn.functional as F

HEADER = pathlib.Path(__file__).resolve().parents[2] / "kernels" / "mantou.h"
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
KINDS = {"int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "float": ctypes.c_float}


class Library:
    """libmantou.so with one context; `call` raises what the library says."""

    def __init__(self, path):
        self.functions = ctypes.CDLL(str(pathlib.Path(path).resolve()))
        code = re.sub(r"/\*.*?\*/", " ", HEADER.read_text(), flags=re.S)
        for result, name, parameters in re.findall(r"MANTOU_API\s+([\w ]+?\*?)\s*(mantou_\w+)\(([^)]*)\);", code):
            function = getattr(self.functions, name)
            kinds = [] if parameters == "void" else [self.kind(p) for p in parameters.split(",")]
            function.argtypes = kinds
            function.restype = ctypes.c_char_p if "*" in result else KINDS[result.strip()]
        self.context = None
        handle = ctypes.c_void_p()
        self.call("mantou_context_create", 0, 0, ctypes.addressof(handle))
        self.context = handle.value
        text = ctypes.create_string_buffer(256)
        self.call("mantou_context_describe", ctypes.addressof(text), 256)
        self.description = text.value.decode()
        self.backend = self.functions.mantou_backend().decode()

    @staticmethod
    def kind(parameter):
        return ctypes.c_void_p if "*" in parameter else KINDS[parameter.split()[0]]

    def call(self, name, *arguments):
        function = getattr(self.functions, name)
        values = [a.address if isinstance(a, Array) else a for a in arguments]
        if len(function.argtypes) == len(values) + 1:
            values.insert(0, self.context)
        result = function(*values)
        if function.restype is ctypes.c_int64:
            return result
        if result != 0:
            raise RuntimeError(self.functions.mantou_last_error().decode())

    def synchronize(self):
        self.call("mantou_synchronize")


class Array:
    """Device memory of one tensor; full of NaN unless it is made from one."""

    def __init__(self, library, shape, dtype):
        self.library, self.shape, self.dtype = library, shape, dtype
        self.bytes = math.prod(shape) * torch.empty(0, dtype=dtype).element_size()
        handle = ctypes.c_void_p()
        library.call("mantou_malloc", max(self.bytes, 1), ctypes.addressof(handle))
        self.address = handle.value
        library.call("mantou_fill", self.address, 255, self.bytes)

    def tensor(self):
        values = torch.empty(self.shape, dtype=self.dtype)
        self.library.call("mantou_copy", values.data_ptr(), self.address, self.bytes)
        return values

    def __del__(self):
        self.library.call("mantou_free", self.address)


class Bench:
    """Makes arrays; everything that one operation needs."""

    def __init__(self, library, dtype):
        self.library, self.dtype, self.code = library, dtype, DTYPES[dtype]
        self.call, self.generator = library.call, torch.Generator().manual_seed(1)

    def normal(self, *shape, scale=1.0, dtype=None):
        return (torch.randn(shape, generator=self.generator) * scale).to(dtype or self.dtype)

    def integers(self, high, *shape):
        return torch.randint(high, shape, generator=self.generator, dtype=torch.int32)

    def array(self, tensor):
        result, values = Array(self.library, tuple(tensor.shape), tensor.dtype), tensor.contiguous()
        self.call("mantou_copy", result.address, values.data_ptr(), result.bytes)
        return result

    def blank(self, *shape, dtype=None):
        return Array(self.library, shape, dtype or self.dtype)

    def workspace(self, name, *sizes):
        return self.blank(max(self.call(name, *sizes) // 4, 1), dtype=torch.float32)


def rotation(positions, dim, theta=10000.0):
    angles = torch.arange(positions)[:, None] * theta ** (-torch.arange(0, dim, 2).double() / dim)
    return torch.stack([angles.cos(), angles.sin()], -1).float()


def rotate(x, table):
    """x [..., T, dim] in float64, pairs (2i, 2i + 1) turned by table [T, dim / 2, 2]."""
    pairs, (cos, sin) = x.unflatten(-1, (-1, 2)), table.double().unbind(-1)
    a, b = pairs.unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


# ---- is it right? ------------------------------------------------------------------------------------------------------
# Each case gives (run, expected): run makes the outputs anew, expected is their float64 values.


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


def check(library, big):
    """Lines of what is wrong, and the worst relative error of each operation and type."""
    wrong, worst = [], {}
    for dtype in DTYPES:
        for name, make, sizes in cases(big):
            run, expected = make(Bench(library, dtype), *sizes)
            outputs = [{key: array.tensor() for key, array in run().items()} for _ in range(2)]
            label = f"{name}, {str(dtype).removeprefix('torch.')}"
            for key, values in outputs[0].items():
                error = relative(values, expected[key])
                same = torch.equal(values.view(torch.uint8), outputs[1][key].view(torch.uint8))
                # bfloat16 keeps eight bits: 2^-9 at most per rounding, and a few of them on the way.
                allowed = 2e-5 if dtype == torch.float32 else 1e-2
                if not error <= allowed:
                    wrong.append(f"{label}: {key} is off by {error:.2e} (allowed {allowed:.0e})")
                if not same:
                    wrong.append(f"{label}: two runs give different bits of {key}")
                group = (name.split()[0], str(dtype).removeprefix("torch."))
                worst[group] = max(worst.get(group, 0.0), error)
    return wrong, worst


# ---- how fast is it? ---------------------------------------------------------------------------------------------------


def time_ours(library, run, repeats=30):
    """Median milliseconds of one run among 7 series, queued without waiting."""
    run()
    library.synchronize()
    series = []
    for _ in range(7):
        started = time.perf_counter()
        for _ in range(repeats):
            run()
        library.synchronize()
        series.append((time.perf_counter() - started) * 1e3 / repeats)
    return statistics.median(series)


def time_torch(run, repeats=30):
    for _ in range(3):
        run()
    series = []
    for _ in range(7):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            run()
        end.record()
        torch.cuda.synchronize()
        series.append(start.elapsed_time(end) / repeats)
    return statistics.median(series)


def ceilings():
    """Copy bandwidth in GB/s (read and written) and bfloat16 matrix rate in TFLOP/s of this card."""
    source = torch.empty(1 << 29, dtype=torch.bfloat16, device="cuda").normal_()
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / time_torch(lambda: target.copy_(source)) / 1e6
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return bandwidth, 2 * 8192**3 / time_torch(lambda: a @ b) / 1e9


def bench(library):
    """Rows (work, unit of the floor, amount, our ms, peer, its ms)."""
    b, bf16 = Bench(library, torch.bfloat16), torch.bfloat16
    cuda = lambda *shape, **options: torch.randn(*shape, device="cuda", dtype=bf16, **options)
    for rows, dim in [(131_072, 512), (65_536, 768), (32_768, 1024)]:
        x, gain, y, rstd = b.array(b.normal(rows, dim)), b.array(b.normal(dim)), b.blank(rows, dim), b.blank(rows, dtype=torch.float32)
        peer_x, peer_g = cuda(rows, dim), cuda(dim)
        ours = time_ours(library, lambda: b.call("mantou_rmsnorm_forward", 1, rows, dim, 1e-5, x, None, gain, None, y, rstd))
        yield f"RMSNorm forward [{rows}, {dim}]", "bytes", 4 * rows * dim, ours, "F.rms_norm", time_torch(lambda: F.rms_norm(peer_x, (dim,), peer_g))
        dx, dgain, work = b.blank(rows, dim), b.array(torch.zeros(dim)), b.workspace("mantou_rmsnorm_backward_workspace", rows, dim)
        ours = time_ours(library, lambda: b.call("mantou_rmsnorm_backward", 1, rows, dim, y, x, gain, rstd, None, dx, dgain, work))
        yield f"RMSNorm backward [{rows}, {dim}]", "bytes", 6 * rows * dim, ours, None, None
    for rows, dim in [(131_072, 1344), (65_536, 2048)]:
        x, y, d = b.array(b.normal(rows, 2 * dim)), b.blank(rows, dim), b.blank(rows, 2 * dim)
        peer = cuda(rows, 2 * dim)
        fused = torch.compile(lambda t: F.silu(t[:, :dim]) * t[:, dim:])
        yield f"SwiGLU forward [{rows}, {dim}]", "bytes", 6 * rows * dim, time_ours(library, lambda: b.call("mantou_swiglu_forward", 1, rows, dim, x, y)), "torch.compile", time_torch(lambda: fused(peer))
        yield f"SwiGLU backward [{rows}, {dim}]", "bytes", 10 * rows * dim, time_ours(library, lambda: b.call("mantou_swiglu_backward", 1, rows, dim, y, x, d)), None, None
    for rows, vocab in [(16_384, 10_112), (8_192, 50_304)]:
        logits, targets, losses = b.array(b.normal(rows, vocab)), b.array(b.integers(vocab, rows)), b.blank(rows, dtype=torch.float32)
        peer, peer_t = cuda(rows, vocab, requires_grad=True), torch.randint(vocab, (rows,), device="cuda")
        ours = time_ours(library, lambda: b.call("mantou_cross_entropy", 1, rows, vocab, logits, vocab, targets, 0.0, 0.0, 1e-3, losses))
        yield f"cross-entropy [{rows}, {vocab}], both passes", "bytes", 4 * rows * vocab, ours, "F.cross_entropy", time_torch(lambda: torch.autograd.grad(F.cross_entropy(peer.float(), peer_t), peer), 5)
    for count in (17_600_000, 124_000_000):
        master, g, m, v = [b.array(torch.randn(count).abs()) for _ in range(4)]
        w, scalars = b.blank(count), b.array(torch.tensor([1e-3, 0.1, 0.1]))
        ends, decays = b.array(torch.tensor([count])), b.array(torch.tensor([0.1]))
        ours = time_ours(library, lambda: b.call("mantou_adamw", 1, count, w, master, g, m, v, scalars, None, 0.9, 0.95, 1e-8, 1, ends, decays))
        parameter = torch.nn.Parameter(torch.randn(count, device="cuda"))
        parameter.grad = torch.randn_like(parameter)
        optimizer = torch.optim.AdamW([parameter], fused=True)
        yield f"AdamW {count / 1e6:.0f}M, bfloat16 with float32 master", "bytes", 30 * count, ours, "fused AdamW in float32 (28 bytes)", time_torch(optimizer.step)
    for rows, vocab, dim in [(131_072, 10_000, 512)]:
        tokens, weight, y, d = b.array(b.integers(vocab, rows)), b.array(b.normal(vocab, dim)), b.blank(rows, dim), b.array(torch.zeros(vocab, dim))
        yield f"embedding forward [{rows}, {dim}]", "bytes", 4 * rows * dim, time_ours(library, lambda: b.call("mantou_embedding_forward", 1, rows, vocab, dim, tokens, weight, y)), None, None
        work = b.workspace("mantou_embedding_backward_workspace", rows, vocab, dim)
        yield f"embedding backward [{rows}, {dim}]", "bytes", 2 * rows * dim + 8 * vocab * dim, time_ours(library, lambda: b.call("mantou_embedding_backward", 1, rows, vocab, dim, tokens, y, d, work)), None, None
    for m, n, k in [(65_536, 2304, 768), (8192, 8192, 8192)]:
        left, right, out, peer_a, peer_b = b.array(b.normal(m, k)), b.array(b.normal(n, k)), b.blank(m, n), cuda(m, k), cuda(n, k)
        ours = time_ours(library, lambda: b.call("mantou_matmul", 0, 1, m, n, k, 1, left, k, right, k, 1, out, n, 0), 5)
        yield f"matmul {m} x {n} x {k}", "flops", 2 * m * n * k, ours, "torch", time_torch(lambda: peer_a @ peer_b.T, 5)
    for heads, kv_heads, dim, keys in [(12, 12, 64, 65_536), (32, 8, 128, 32_768)]:
        width, starts, y = (heads + 2 * kv_heads) * dim, b.array(torch.tensor([keys - 1], dtype=torch.int32)), b.blank(1, heads * dim)
        qkv, caches = b.array(b.normal(1, width)), [b.array(b.normal(keys, kv_heads * dim)) for _ in range(2)]
        q, k, v = qkv.address, qkv.address + 2 * heads * dim, qkv.address + 2 * (heads + kv_heads) * dim
        ours = time_ours(library, lambda: b.call("mantou_attention_cached", 1, 1, 1, starts, None, 1, keys, heads, kv_heads, dim, dim**-0.5, q, width, k, v, width, None, *caches, y))
        yield f"attention of one token on {keys} keys, {heads} heads on {kv_heads} of {dim}", "bytes", 4 * keys * kv_heads * dim, ours, None, None
    for batch, length, heads, dim in [(512, 256, 16, 32), (16, 1024, 16, 64), (8, 1024, 16, 128), (4, 4096, 16, 64), (4, 4096, 16, 128)]:
        rows, width, scale = batch * length, 3 * heads * dim, dim**-0.5
        qkv, y, dy, d = b.array(b.normal(rows, width)), b.blank(rows, heads * dim), b.array(b.normal(rows, heads * dim)), b.blank(rows, width)
        lse, rope, part = b.blank(batch, heads, length, dtype=torch.float32), b.array(rotation(length, dim)), 2 * heads * dim
        sizes, q = [1, batch, length, heads, heads, dim, scale], qkv.address
        flops = 2 * batch * heads * length**2 * dim
        first = b.call("mantou_attention_rotate_first", length)

        def forward():
            if first:
                b.call("mantou_rope", 1, rows, length, 2 * heads, dim, rope, None, q, width, q, width, 0)
            b.call("mantou_attention_forward", *sizes, q, width, q + part, q + 2 * part, width, None if first else rope, None, y, lse)

        work = b.workspace("mantou_attention_backward_workspace", *sizes[1:6])
        backward = lambda: b.call("mantou_attention_backward", *sizes, dy, q, width, q + part, q + 2 * part, width, rope, None, first, y, lse, d.address, d.address + part, d.address + 2 * part, work)
        heads_of = lambda: cuda(batch, heads, length, dim, requires_grad=True)
        peer, peer_dy = [heads_of() for _ in range(3)], cuda(batch, heads, length, dim)
        label = f"causal attention, {batch} x {length}, {heads} heads of {dim}"
        times = {}
        for backend in (torch.nn.attention.SDPBackend.FLASH_ATTENTION, torch.nn.attention.SDPBackend.CUDNN_ATTENTION):
            try:
                with torch.nn.attention.sdpa_kernel(backend):
                    call = lambda: F.scaled_dot_product_attention(*peer, is_causal=True)
                    out, name = call(), backend.name.split("_")[0].lower()
                    times[name] = (time_torch(call, 10), time_torch(lambda: torch.autograd.grad(out, peer, peer_dy, retain_graph=True), 10))
            except RuntimeError as error:
                print(f"SDPA {backend.name}: {error}", file=sys.stderr)
        for i, (what, run, factor) in enumerate((("forward", forward, 1.0), ("backward", backward, 2.5))):
            best = min(times, key=lambda name: times[name][i]) if times else None
            yield f"{label}, {what} (ours with RoPE)", "flops", factor * flops, time_ours(library, run, 10), best and f"SDPA {best}", best and times[best][i]


def write(results, directory):
    """One JSON file and one Markdown table, named by device and date."""
    name = re.sub(r"\W+", "-", results["device"].split(",")[0]).strip("-").lower() + time.strftime("-%Y-%m-%d")
    (directory / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    lines = [f"# {results['device']}, {time.strftime('%Y-%m-%d')}, PyTorch {results['torch']}", ""]
    lines += [f"`python bench/gpu/kernels.py LIBRARY --results {directory}`", ""]
    if results["rows"]:
        lines += [f"Copies move {results['copy_gb_per_s']:.0f} GB/s, matrix products do {results['matrix_tflops']:.0f} TFLOP/s.", ""]
        lines += ["| work | ms | achieved | of the card's | peer | peer's ms | ratio |", "| --- | --: | --: | --: | --- | --: | --: |"]
    for row in results["rows"]:
        unit = "GB/s" if row["unit"] == "bytes" else "TFLOP/s"
        peer = f"{row['peer']} | {row['peer_ms']:.3f} | {row['peer_ms'] / row['ms']:.2f} |" if row["peer"] else "| | |"
        lines.append(f"| {row['work']} | {row['ms']:.3f} | {row['achieved']:.0f} {unit} | {row['share']:.0%} | {peer}")
    lines += ["", "| operation | largest relative error against float64 |", "| --- | --: |"]
    lines += [f"| {name} | {error:.1e} |" for name, error in sorted(results["errors"].items())]
    lines += ["", *(results["wrong"] or ["Every operation is right, and gives the same bits twice."])]
    (directory / f"{name}.md").write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("library")
    parser.add_argument("--results", help="where a JSON file and a Markdown table named by device and date go")
    parser.add_argument("--small", action="store_true", help="small shapes only, as for a sanitizer")
    parser.add_argument("--no-bench", action="store_true")
    options = parser.parse_args()
    library = Library(options.library)
    on_gpu = library.backend == "cuda"
    print(f"{library.backend}: {library.description}; PyTorch {torch.__version__}")
    wrong, worst = check(library, big=on_gpu and not options.small)
    for (operation, dtype), error in sorted(worst.items()):
        print(f"{operation:14} {dtype:9} largest relative error {error:.1e}")
    print("\n".join(wrong) or "every operation is right, and gives the same bits twice")
    results = {"device": library.description, "torch": torch.__version__, "wrong": wrong, "rows": []}
    results["errors"] = {" ".join(key): error for key, error in worst.items()}
    if on_gpu and torch.cuda.is_available() and not options.no_bench:
        bandwidth, rate = ceilings()
        results |= {"copy_gb_per_s": bandwidth, "matrix_tflops": rate}
        print(f"copies move {bandwidth:.0f} GB/s, matrix products do {rate:.0f} TFLOP/s on this card")
        for work, unit, amount, ours, peer, theirs in bench(library):
            achieved = amount / ours / (1e6 if unit == "bytes" else 1e9)
            share = achieved / (bandwidth if unit == "bytes" else rate)
            row = {"work": work, "unit": unit, "ms": ours, "achieved": achieved, "share": share, "peer": peer, "peer_ms": theirs}
            results["rows"].append(row)
            beside = f", {theirs / ours:.2f} x the speed of {peer}" if peer else ""
            print(f"{work}: {ours:.3f} ms, {achieved:.0f} {'GB/s' if unit == 'bytes' else 'TFLOP/s'}, {share:.0%}{beside}")
    if options.results:
        write(results, pathlib.Path(options.results))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
