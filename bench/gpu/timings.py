"""How long the operations take on a GPU, and PyTorch's own beside them on the same card.

Each group gives rows (work, unit of its floor, amount of that unit, what runs it, peers, target). A peer is a function
that prepares and gives what is to be timed. A target is a share of the card's copy bandwidth for bytes, else TFLOP/s.
PyTorch's default device is the card.
"""

import ctypes
import statistics
import sys

import torch
import torch._functorch.config as functorch
import torch.nn.functional as F

from library import rotation

# A compiled backward pass may be run again and again (see gradients); from 2.6 on PyTorch would reuse what forward has kept.
if hasattr(functorch, "donated_buffer"):
    functorch.donated_buffer = False

BF16 = torch.bfloat16
COPIES = 0.85  # the target of what memory bounds: a share of what plain copies reach


def time_ours(library, run, repeats=30):
    """Median milliseconds of one run among 7 series of them, by the device's clock. A series is captured as one graph and
    queued behind another, so that the device never waits for the host."""
    run()
    library.synchronize()
    graph = ctypes.c_void_p()
    library.call("mantou_capture_begin")
    try:
        for _ in range(repeats):
            run()
    finally:
        library.call("mantou_capture_end", ctypes.addressof(graph))
    series, taken = [], ctypes.c_double()
    for _ in range(7):
        library.call("mantou_graph_replay", graph.value, None)
        library.call("mantou_mark", 0)
        library.call("mantou_graph_replay", graph.value, None)
        library.call("mantou_mark", 1)
        library.call("mantou_time_between_marks", ctypes.addressof(taken))
        series.append(taken.value / repeats)
    library.call("mantou_graph_destroy", graph.value)
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


def fastest(peers):
    """Name and milliseconds of the fastest peer that works here; None where none does."""
    times = {}
    for name, prepare in peers.items():
        try:
            times[name] = time_torch(prepare(), 10)
        except Exception as error:  # no compiler for Triton, no such backend, too little memory
            print(f"{name}: {(str(error) or repr(error)).splitlines()[0]}", file=sys.stderr)
    name = min(times, key=times.get, default=None)
    return name, times.get(name)


def normal(*shape, **options):
    return torch.randn(*shape, dtype=BF16, **options)


def ceilings():
    """Copy bandwidth in GB/s (read and written) and bfloat16 matrix rate in TFLOP/s of this card."""
    source = normal(1 << 29)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / time_torch(lambda: target.copy_(source)) / 1e6
    a, b = (normal(8192, 8192) for _ in range(2))
    return bandwidth, 2 * 8192**3 / time_torch(lambda: a @ b) / 1e9


def gradients(function, inputs, incoming):
    """The backward pass of function(*inputs), alone."""

    def prepare():
        output = function(*inputs)
        return lambda: torch.autograd.grad(output, inputs, incoming, retain_graph=True)

    return prepare


def rmsnorm(b, rows, dim):
    x, gain, y, rstd = b.array(b.normal(rows, dim)), b.array(b.normal(dim)), b.blank(rows, dim), b.blank(rows, dtype=torch.float32)
    inputs, incoming = (normal(rows, dim, requires_grad=True), normal(dim, requires_grad=True)), normal(rows, dim)
    norm = lambda x, g: F.rms_norm(x, (dim,), g)
    compiled = torch.compile(norm, dynamic=False)
    run = lambda: b.call("mantou_rmsnorm_forward", 1, rows, dim, 1e-5, x, None, gain, None, y, rstd)
    peers = {"F.rms_norm": lambda: lambda: norm(*inputs), "F.rms_norm, compiled": lambda: lambda: compiled(*inputs)}
    yield f"RMSNorm forward [{rows}, {dim}]", "bytes", 4 * rows * dim, run, peers, COPIES
    dx, dgain, work = b.blank(rows, dim), b.zeros(dim), b.workspace("mantou_rmsnorm_backward_workspace", rows, dim)
    run = lambda: b.call("mantou_rmsnorm_backward", 1, rows, dim, y, x, gain, rstd, None, dx, dgain, work)
    peers = {"F.rms_norm": gradients(norm, inputs, incoming), "F.rms_norm, compiled": gradients(compiled, inputs, incoming)}
    yield f"RMSNorm backward [{rows}, {dim}]", "bytes", 6 * rows * dim, run, peers, COPIES


def rmsnorm_residual(b, rows, dim):
    """As in training: the sum with the residual is written too, and its gradient comes in."""
    x, residual, gain = b.array(b.normal(rows, dim)), b.array(b.normal(rows, dim)), b.array(b.normal(dim))
    total, y, dx, dgain = b.blank(rows, dim), b.blank(rows, dim), b.blank(rows, dim), b.zeros(dim)
    rstd, work = b.blank(rows, dtype=torch.float32), b.workspace("mantou_rmsnorm_backward_workspace", rows, dim)
    run = lambda: b.call("mantou_rmsnorm_forward", 1, rows, dim, 1e-5, x, residual, gain, total, y, rstd)
    yield f"RMSNorm forward with residual [{rows}, {dim}]", "bytes", 8 * rows * dim, run, {}, COPIES
    run = lambda: b.call("mantou_rmsnorm_backward", 1, rows, dim, y, total, gain, rstd, residual, dx, dgain, work)
    yield f"RMSNorm backward with residual [{rows}, {dim}]", "bytes", 8 * rows * dim, run, {}, COPIES


def swiglu(b, rows, dim):
    x, y, d = b.array(b.normal(rows, 2 * dim)), b.blank(rows, dim), b.blank(rows, 2 * dim)
    peer, incoming = normal(rows, 2 * dim, requires_grad=True), normal(rows, dim)
    fused = torch.compile(lambda t: F.silu(t[:, :dim]) * t[:, dim:], dynamic=False)
    run = lambda: b.call("mantou_swiglu_forward", 1, rows, dim, x, y)
    yield f"SwiGLU forward [{rows}, {dim}]", "bytes", 6 * rows * dim, run, {"compiled": lambda: lambda: fused(peer)}, COPIES
    run = lambda: b.call("mantou_swiglu_backward", 1, rows, dim, y, x, d)
    peers = {"compiled": gradients(fused, (peer,), incoming)}
    yield f"SwiGLU backward [{rows}, {dim}]", "bytes", 10 * rows * dim, run, peers, COPIES


def cross_entropy(b, rows, vocab):
    logits, targets, losses = b.array(b.normal(rows, vocab)), b.array(b.integers(vocab, rows)), b.blank(rows, dtype=torch.float32)
    peer, wanted = normal(rows, vocab, requires_grad=True), torch.randint(vocab, (rows,))
    loss = lambda logits: F.cross_entropy(logits.float(), wanted)
    compiled = torch.compile(loss, dynamic=False)
    both = lambda function: lambda: lambda: torch.autograd.grad(function(peer), peer)
    run = lambda: b.call("mantou_cross_entropy", 1, rows, vocab, logits, vocab, targets, 0.0, 0.0, 1e-3, losses)
    peers = {"F.cross_entropy": both(loss), "F.cross_entropy, compiled": both(compiled)}
    yield f"cross-entropy [{rows}, {vocab}], both passes", "bytes", 4 * rows * vocab, run, peers, COPIES


def adamw(b, count):
    master, g, m, v = [b.array(b.normal(count, dtype=torch.float32).abs()) for _ in range(4)]
    w, scalars = b.blank(count), b.array(torch.tensor([1e-3, 0.1, 0.1]))
    ends, decays = b.array(torch.tensor([count])), b.array(torch.tensor([0.1]))
    run = lambda: b.call("mantou_adamw", 1, count, w, master, g, m, v, scalars, None, 0.9, 0.95, 1e-8, 1, ends, decays)

    def fused():
        parameter = torch.nn.Parameter(torch.randn(count))
        parameter.grad = torch.randn_like(parameter)
        return torch.optim.AdamW([parameter], fused=True).step

    peers = {"fused AdamW in float32 (28 bytes)": fused}
    yield f"AdamW {count / 1e6:.0f}M, bfloat16 with float32 master", "bytes", 30 * count, run, peers, COPIES
    norm, work = b.blank(2, dtype=torch.float32), b.workspace("mantou_gradient_norm_workspace", count)
    run = lambda: b.call("mantou_gradient_norm", count, g, 1.0, 1e-6, norm, work)
    yield f"gradient norm {count / 1e6:.0f}M", "bytes", 4 * count, run, {}, COPIES


def embedding(b, rows, vocab, dim):
    tokens, weight = b.array(b.integers(vocab, rows)), b.array(b.normal(vocab, dim))
    y, d = b.blank(rows, dim), b.zeros(vocab, dim)
    ids, table, incoming = torch.randint(vocab, (rows,)), normal(vocab, dim), normal(rows, dim)
    run = lambda: b.call("mantou_embedding_forward", 1, rows, vocab, dim, tokens, weight, y)
    peers = {"F.embedding": lambda: lambda: F.embedding(ids, table)}
    yield f"embedding forward [{rows}, {dim}]", "bytes", 4 * rows * dim, run, peers, COPIES
    work = b.workspace("mantou_embedding_backward_workspace", rows, vocab, dim)
    run = lambda: b.call("mantou_embedding_backward", 1, rows, vocab, dim, tokens, y, d, work)
    backward = lambda: torch.ops.aten.embedding_dense_backward(incoming, ids, vocab, -1, False)
    peers = {"F.embedding": lambda: backward}
    yield f"embedding backward [{rows}, {dim}]", "bytes", 2 * rows * dim + 8 * vocab * dim, run, peers, COPIES


def matmul(b, m, n, k):
    left, right, out, peer_a, peer_b = b.array(b.normal(m, k)), b.array(b.normal(n, k)), b.blank(m, n), normal(m, k), normal(n, k)
    run = lambda: b.call("mantou_matmul", 0, 1, m, n, k, 1, left, k, right, k, 1, out, n, 0)
    peers = {"torch": lambda: lambda: peer_a @ peer_b.T}
    yield f"matmul {m} x {n} x {k}", "flops", 2 * m * n * k, run, peers, None


def attention_cached(b, heads, kv_heads, dim, keys):
    width, starts, y = (heads + 2 * kv_heads) * dim, b.array(torch.tensor([keys - 1], dtype=torch.int32)), b.blank(1, heads * dim)
    qkv, caches = b.array(b.normal(1, width)), [b.array(b.normal(keys, kv_heads * dim)) for _ in range(2)]
    q, k, v = qkv.address, qkv.address + 2 * heads * dim, qkv.address + 2 * (heads + kv_heads) * dim
    sizes = [1, 1, 1, starts, None, 1, keys, heads, kv_heads, dim, dim**-0.5]
    run = lambda: b.call("mantou_attention_cached", *sizes, q, width, k, v, width, None, *caches, y)
    work = f"attention of one token on {keys} keys, {heads} heads on {kv_heads} of {dim}"
    yield work, "bytes", 4 * keys * kv_heads * dim, run, {}, COPIES


def attention(b, batch, length, heads, dim, targets=(None, None)):
    rows, width, scale = batch * length, 3 * heads * dim, dim**-0.5
    qkv, y, dy, d = b.array(b.normal(rows, width)), b.blank(rows, heads * dim), b.array(b.normal(rows, heads * dim)), b.blank(rows, width)
    lse, rope, part = b.blank(batch, heads, length, dtype=torch.float32), b.array(rotation(length, dim)), 2 * heads * dim
    sizes, q = [1, batch, length, heads, heads, dim, scale], qkv.address
    first = b.call("mantou_attention_rotate_first", length)
    work = b.workspace("mantou_attention_backward_workspace", *sizes[1:6])

    def forward():
        if first:
            b.call("mantou_rope", 1, rows, length, 2 * heads, dim, rope, None, q, width, q, width, 0)
        b.call("mantou_attention_forward", *sizes, q, width, q + part, q + 2 * part, width, None if first else rope, None, y, lse)

    def backward():
        inputs = [dy, q, width, q + part, q + 2 * part, width, rope, None, first, y, lse]
        b.call("mantou_attention_backward", *sizes, *inputs, d.address, d.address + part, d.address + 2 * part, work)

    inputs, incoming = tuple(normal(batch, heads, length, dim, requires_grad=True) for _ in range(3)), normal(batch, heads, length, dim)

    def with_backend(backend):
        def function(*inputs):
            with torch.nn.attention.sdpa_kernel(backend):
                return F.scaled_dot_product_attention(*inputs, is_causal=True)

        return function

    backends = torch.nn.attention.SDPBackend
    functions = {"SDPA flash": with_backend(backends.FLASH_ATTENTION), "SDPA cuDNN": with_backend(backends.CUDNN_ATTENTION)}
    forwards = {name: lambda function=function: lambda: function(*inputs) for name, function in functions.items()}
    backwards = {name: gradients(function, inputs, incoming) for name, function in functions.items()}
    label, flops = f"causal attention, {batch} x {length}, {heads} heads of {dim}", 2 * batch * heads * length**2 * dim
    yield f"{label}, forward (ours with RoPE)", "flops", flops, forward, forwards, targets[0]
    yield f"{label}, backward (ours with RoPE)", "flops", 2.5 * flops, backward, backwards, targets[1]


def groups():
    """(label, function, sizes), what is most wanted first."""
    for sizes in [(512, 256, 16, 32), (4, 4096, 16, 64, (300, None)), (4, 4096, 16, 128, (330, 280)), (8, 1024, 16, 128, (None, 200)), (16, 1024, 16, 64)]:
        yield f"attention {sizes[:4]}", attention, sizes
    for sizes in [(131_072, 512), (65_536, 768), (32_768, 1024)]:
        yield f"RMSNorm {sizes}", rmsnorm, sizes
        yield f"RMSNorm with residual {sizes}", rmsnorm_residual, sizes
    for sizes in [(131_072, 1344), (65_536, 2048)]:
        yield f"SwiGLU {sizes}", swiglu, sizes
    for sizes in [(16_384, 10_112), (8_192, 50_304)]:
        yield f"cross-entropy {sizes}", cross_entropy, sizes
    for count in (17_600_000, 124_000_000):
        yield f"AdamW {count}", adamw, (count,)
    yield "embedding", embedding, (131_072, 10_000, 512)
    for sizes in [(131_072, 2688, 512), (65_536, 2304, 768), (8192, 8192, 8192)]:
        yield f"matmul {sizes}", matmul, sizes
    for sizes in [(12, 12, 64, 65_536), (32, 8, 128, 32_768)]:
        yield f"attention of one token {sizes}", attention_cached, sizes


def try_out(b):
    """Does what is to be timed once, on small sizes, peers included that need no compiler: so that all of it is known to run
    before there is a GPU. No time that it takes means anything."""
    small = [
        (attention, (2, 64, 2, 32)),
        (attention, (1, 520, 1, 64, (300, None))),
        (rmsnorm, (33, 64)),
        (rmsnorm_residual, (33, 64)),
        (swiglu, (33, 64)),
        (cross_entropy, (17, 128)),
        (adamw, (5000,)),
        (embedding, (300, 50, 64)),
        (matmul, (64, 48, 32)),
        (attention_cached, (4, 2, 64, 600)),
    ]
    missing = {function.__name__ for _, function, _ in groups()} - {function.__name__ for function, _ in small}
    assert not missing, f"not tried: {missing}"
    for function, sizes in small:
        for _, _, _, run, peers, _ in function(b, *sizes):
            time_ours(b.library, run, 1)
            for name, prepare in peers.items():
                if "compiled" not in name and "cuDNN" not in name:
                    prepare()()


def time_group(b, function, sizes, bandwidth, rate):
    """The rows of a group, as they go into the results, each as soon as it is known."""
    for work, unit, amount, run, peers, target in function(b, *sizes):
        ms = time_ours(b.library, run, 10 if unit == "flops" else 30)
        peer, peer_ms = fastest(peers)
        achieved = amount / ms / (1e6 if unit == "bytes" else 1e9)
        share = achieved / (bandwidth if unit == "bytes" else rate)
        row = {"work": work, "unit": unit, "ms": ms, "achieved": achieved, "share": share, "target": target, "peer": peer, "peer_ms": peer_ms}
        beside = f", {peer_ms / ms:.2f} x the speed of {peer}" if peer else ""
        print(f"{work}: {ms:.3f} ms, {achieved:.0f} {'GB/s' if unit == 'bytes' else 'TFLOP/s'}, {share:.0%}{beside}", flush=True)
        yield row
