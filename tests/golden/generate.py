"""Writes the golden files beside this script: what PyTorch computes for every operation, model and optimizer step.

The files are committed, so nobody needs this script to run the tests. To make them again (a few seconds, no GPU):

    python3 -m venv build/golden
    build/golden/bin/pip install numpy torch==2.13.0 --extra-index-url https://download.pytorch.org/whl/cpu
    build/golden/bin/python tests/golden/generate.py

Conventions. Inputs are drawn from a fixed seed and rounded to float32; everything is then computed in float64 and the
results are rounded to float32, so a golden is right to half a unit in the last place. The exception is the training
trajectory, which is PyTorch in float32, with the losses of the same run in float64 beside it as a measure of how far
float32 drifts by itself. The formulas use PyTorch's own functions wherever it has them.

Each file is a safetensors file. Its one metadata entry, "tree", is JSON; wherever {"$tensor": NAME} stands in it, the
tensor of that name belongs. tests/support/golden.ts reads and types them. The key "options" holds exactly what the
adapter of that operation takes; gradients are those of sum(output * gradOutput), named like the options.
"""

import json
import math
import struct
from pathlib import Path

import torch
import torch.nn.functional as F

FOLDER = Path(__file__).parent
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
generator = torch.Generator().manual_seed(336)


# ---------------------------------------------------------------------------------------------------- file format


def save(name, tree):
    """Writes a tree of dicts, lists, numbers, strings and tensors to NAME.safetensors."""
    header, blobs, offset = {}, [], 0
    dtypes = {torch.float32: "F32", torch.int32: "I32", torch.uint8: "U8"}

    def strip(node, path):
        nonlocal offset
        if isinstance(node, torch.Tensor):
            node = node.detach()
            node = node.to(torch.float32) if node.is_floating_point() else node
            node = node.to(torch.int32) if node.dtype == torch.int64 else node
            blob = node.contiguous().numpy().tobytes()
            header[path] = {
                "dtype": dtypes[node.dtype],
                "shape": list(node.shape),
                "data_offsets": [offset, offset + len(blob)],
            }
            blobs.append(blob)
            offset += len(blob)
            return {"$tensor": path}
        if isinstance(node, dict):
            return {key: strip(child, f"{path}/{key}" if path else key) for key, child in node.items()}
        if isinstance(node, (list, tuple)):
            return [strip(child, f"{path}/{i}") for i, child in enumerate(node)]
        return node

    stripped = strip(tree, "")
    text = json.dumps({"__metadata__": {"tree": json.dumps(stripped)}, **header}).encode()
    text += b" " * (-len(text) % 8)  # the format asks for data aligned to 8 bytes
    path = FOLDER / f"{name}.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))
    print(f"{path.name}: {path.stat().st_size} bytes, {len(header)} tensors")


# --------------------------------------------------------------------------------------------------- random inputs


def rounded(x):
    """The float64 tensor of the float32 values nearest to x."""
    return x.to(torch.float32).to(torch.float64)


def normal(*shape, scale=1.0, mean=0.0):
    return rounded(mean + scale * torch.randn(*shape, generator=generator))


def integers(limit, *shape):
    return torch.randint(limit, shape, generator=generator)


def linear_weight(d_out, d_in):
    """Truncated normal at ±3σ with σ² = 2 / (dIn + dOut), as the handout initialises."""
    sigma = math.sqrt(2 / (d_in + d_out))
    weight = torch.empty(d_out, d_in)
    torch.nn.init.trunc_normal_(weight, 0, sigma, -3 * sigma, 3 * sigma, generator=generator)
    return rounded(weight)


def gain(d):
    """Near 1 but not 1, so that a forgotten gain shows."""
    return normal(d, scale=0.2, mean=1.0)


# ---------------------------------------------------------------------------------------------------------- formulas


def rope(x, positions, theta):
    """Turns the pairs (2i, 2i+1) of x [..., T, d] by position * theta^(-2i/d), as products of complex numbers."""
    d = x.shape[-1]
    frequencies = theta ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    angles = positions.to(torch.float64).unsqueeze(-1) * frequencies
    turns = torch.polar(torch.ones_like(angles), angles)
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], d // 2, 2))
    return torch.view_as_real(pairs * turns.to(pairs.dtype)).reshape(x.shape)


def attention_with_mask(Q, K, V, mask):
    """Masked scores become the lowest finite number, so a row with nothing to attend to gives the mean of V."""
    scores = Q @ K.transpose(-1, -2) / math.sqrt(Q.shape[-1])
    scores = torch.where(mask.bool(), scores, torch.full_like(scores, torch.finfo(scores.dtype).min))
    return torch.softmax(scores, -1) @ V


def self_attention(x, q, k, v, o, num_heads, num_kv_heads=None, theta=None, positions=None):
    """Causal self-attention over x [..., T, d]; theta None means no position information."""
    T, d = x.shape[-2:]
    head = d // num_heads

    def split(y, heads):
        return y.reshape(*y.shape[:-1], heads, head).transpose(-2, -3)

    kv_heads = num_kv_heads or num_heads
    queries, keys, values = split(x @ q.T, num_heads), split(x @ k.T, kv_heads), split(x @ v.T, kv_heads)
    if theta is not None:
        positions = torch.arange(T) if positions is None else positions
        queries = rope(queries, positions.unsqueeze(-2), theta)
        keys = rope(keys, positions.unsqueeze(-2), theta)
    joined = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
    return joined.transpose(-2, -3).reshape(x.shape) @ o.T


def block(x, w, config, prefix=""):
    def weight(name):
        return w[f"{prefix}{name}.weight"]

    def norm(name, y):
        return F.rms_norm(y, (y.shape[-1],), weight(name), 1e-5)

    def attention(y):
        projections = [weight(f"attn.{name}_proj") for name in ("q", "k", "v", "output")]
        theta = config["ropeTheta"] if config.get("position", "rope") == "rope" else None
        return self_attention(y, *projections, config["numHeads"], config.get("numKeyValueHeads"), theta)

    def feed_forward(y):
        hidden = F.silu(y @ weight("ffn.w1").T)
        if config.get("ffn", "swiglu") == "swiglu":
            hidden = hidden * (y @ weight("ffn.w3").T)
        return hidden @ weight("ffn.w2").T

    order = config.get("norm", "pre")
    if order == "pre":
        x = x + attention(norm("ln1", x))
        return x + feed_forward(norm("ln2", x))
    if order == "post":
        x = norm("ln1", x + attention(x))
        return norm("ln2", x + feed_forward(x))
    x = x + attention(x)
    return x + feed_forward(x)


def language_model(tokens, w, config):
    x = F.embedding(tokens, w["token_embeddings.weight"])
    for i in range(config["numLayers"]):
        x = block(x, w, config, f"layers.{i}.")
    if config.get("norm", "pre") != "none":
        x = F.rms_norm(x, (x.shape[-1],), w["ln_final.weight"], 1e-5)
    logits = x @ w["token_embeddings.weight" if config.get("tieEmbeddings") else "lm_head.weight"].T
    cap = config.get("logitSoftCap", 0)
    return cap * torch.tanh(logits / cap) if cap > 0 else logits


def loss_of(logits, targets):
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten().long())


def block_weights(config, prefix=""):
    d, d_ff = config["dModel"], config["dFf"]
    d_kv = d // config["numHeads"] * config.get("numKeyValueHeads", config["numHeads"])
    w = {
        "attn.q_proj": linear_weight(d, d),
        "attn.k_proj": linear_weight(d_kv, d),
        "attn.v_proj": linear_weight(d_kv, d),
        "attn.output_proj": linear_weight(d, d),
        "ffn.w1": linear_weight(d_ff, d),
        "ffn.w2": linear_weight(d, d_ff),
    }
    if config.get("ffn", "swiglu") == "swiglu":
        w["ffn.w3"] = linear_weight(d_ff, d)
    if config.get("norm", "pre") != "none":
        w |= {"ln1": gain(d), "ln2": gain(d)}
    return {f"{prefix}{name}.weight": weight for name, weight in w.items()}


def model_weights(config):
    w = {"token_embeddings.weight": normal(config["vocabSize"], config["dModel"])}
    for i in range(config["numLayers"]):
        w |= block_weights(config, f"layers.{i}.")
    if config.get("norm", "pre") != "none":
        w["ln_final.weight"] = gain(config["dModel"])
    if not config.get("tieEmbeddings"):
        w["lm_head.weight"] = linear_weight(config["vocabSize"], config["dModel"])
    return w


# ---------------------------------------------------------------------------------------------------------- operations


def case(options, function, wanted):
    """Runs function(options), differentiates by the options named in `wanted`, and by "weights" where it is a dict."""
    named = options["weights"] if isinstance(options.get("weights"), dict) else {}
    leaves = {name: options[name].clone().requires_grad_() for name in wanted}
    named_leaves = {name: weight.clone().requires_grad_() for name, weight in named.items()}
    output = function(options | leaves | ({"weights": named_leaves} if named else {}))
    grad_output = normal(*output.shape)
    everything = [*leaves.values(), *named_leaves.values()]
    found = iter(torch.autograd.grad(output, everything, grad_output))
    gradients = {name: next(found) for name in leaves}
    if named:
        gradients["weights"] = {name: next(found) for name in named_leaves}
    return {"options": options, "output": output, "gradOutput": grad_output, "gradients": gradients}


def linear_cases():
    def make(d_out, d_in, *lead):
        options = {"weights": linear_weight(d_out, d_in), "inFeatures": normal(*lead, d_in)}
        return case(options, lambda o: F.linear(o["inFeatures"], o["weights"]), ["weights", "inFeatures"])

    return {
        "vector": make(7, 5),
        "two leading dimensions": make(33, 17, 3, 2),
        "past one vector register": make(31, 65, 19),
        "one output": make(1, 9, 4),
    }


def embedding_cases():
    def make(vocab_size, d, ids):
        options = {"weights": normal(vocab_size, d), "tokenIds": ids}
        return case(options, lambda o: F.embedding(o["tokenIds"], o["weights"]), ["weights"])

    return {
        "repeated ids": make(11, 7, torch.tensor([[3, 0, 10, 3, 3], [0, 1, 2, 10, 9]])),
        "one leading dimension": make(5, 33, torch.tensor([4, 4, 0])),
    }


def rmsnorm_cases():
    def make(eps, scale, *shape):
        d = shape[-1]
        options = {"dModel": d, "eps": eps, "weights": gain(d), "inFeatures": normal(*shape, scale=scale)}
        return case(
            options, lambda o: F.rms_norm(o["inFeatures"], (d,), o["weights"], eps), ["weights", "inFeatures"]
        )

    return {
        "two leading dimensions": make(1e-5, 1.0, 2, 3, 37),
        "vector": make(1e-5, 3.0, 13),
        "so small that eps counts": make(1e-5, 2e-3, 5, 24),
        "another eps": make(1e-2, 0.3, 4, 7),
    }


def silu_cases():
    def make(x):
        return case({"inFeatures": x}, lambda o: F.silu(o["inFeatures"]), ["inFeatures"])

    extremes = torch.tensor([-1e4, -100.0, -88.5, -20.0, -1.2784, -0.0, 0.0, 1e-6, 20.0, 88.5, 1e4])
    return {"three dimensions": make(normal(3, 5, 7, scale=2.0)), "extremes": make(rounded(extremes))}


def swiglu_cases():
    def make(d, d_ff, *lead):
        options = {
            "w1": linear_weight(d_ff, d),
            "w2": linear_weight(d, d_ff),
            "w3": linear_weight(d_ff, d),
            "inFeatures": normal(*lead, d),
        }

        def run(o):
            x = o["inFeatures"]
            return (F.silu(x @ o["w1"].T) * (x @ o["w3"].T)) @ o["w2"].T

        return case(options, run, list(options))

    return {"two leading dimensions": make(12, 19, 2, 3), "vector": make(5, 33)}


def softmax_cases():
    def make(x, dim):
        return case({"inFeatures": x, "dim": dim}, lambda o: torch.softmax(o["inFeatures"], dim), ["inFeatures"])

    return {
        "last": make(normal(3, 4, 17, scale=3.0), -1),
        "first": make(normal(5, 3, 2), 0),
        "middle from the end": make(normal(2, 7, 3), -2),
        "large": make(rounded(normal(4, 9, scale=5.0) + 1e4), 1),
        "vector": make(normal(33), 0),
    }


def attention_cases():
    def make(lead, q, k, dk, dv, mask=None):
        options = {"Q": normal(*lead, q, dk), "K": normal(*lead, k, dk), "V": normal(*lead, k, dv)}

        def run(o):
            if mask is None:
                return F.scaled_dot_product_attention(o["Q"], o["K"], o["V"])
            return attention_with_mask(o["Q"], o["K"], o["V"], mask)

        result = case(options, run, ["Q", "K", "V"])
        if mask is not None:
            options["mask"] = mask.to(torch.uint8)
        return result

    some = integers(2, 2, 3, 5, 7)
    empty_rows = integers(2, 3, 4, 6)
    empty_rows[0, 2] = 0
    empty_rows[2, 0] = 0
    return {
        "no mask": make((3,), 5, 9, 6, 4),
        "no leading dimension": make((), 4, 3, 5, 7),
        "random mask": make((2, 3), 5, 7, 8, 5, some),
        "fully masked rows": make((3,), 4, 6, 3, 5, empty_rows),
        "causal mask broadcast": make((2, 2), 11, 11, 10, 10, torch.ones(11, 11).tril()),
    }


def rope_cases():
    def make(x, positions, theta, max_seq_len):
        options = {
            "dK": x.shape[-1],
            "theta": theta,
            "maxSeqLen": max_seq_len,
            "inQueryOrKey": x,
            "tokenPositions": positions,
        }
        return case(options, lambda o: rope(o["inQueryOrKey"], positions, theta), ["inQueryOrKey"])

    return {
        "shared positions": make(normal(2, 3, 7, 10), torch.tensor([0, 1, 5, 5, 30, 8, 2]), 10000.0, 32),
        "positions per sequence": make(normal(2, 5, 6), integers(20, 2, 5), 500.0, 20),
        "positions with a leading one": make(normal(3, 4, 8), torch.arange(4).unsqueeze(0), 10000.0, 4),
        "long": make(normal(3, 2), torch.tensor([0, 511, 1023]), 10000.0, 1024),
    }


def projections(d):
    return {f"{name}ProjWeight": linear_weight(d, d) for name in "qkvo"}


def self_attention_cases(with_rope):
    def make(d, num_heads, lead, T, positions=None):
        options = {"dModel": d, "numHeads": num_heads} | projections(d) | {"inFeatures": normal(*lead, T, d)}
        theta = None
        if with_rope:
            theta = 10000.0
            options |= {"maxSeqLen": 32, "theta": theta}
            if positions is not None:
                options["tokenPositions"] = positions
        names = [f"{name}ProjWeight" for name in "qkvo"]

        def run(o):
            return self_attention(
                o["inFeatures"], *(o[name] for name in names), num_heads, theta=theta, positions=positions
            )

        return case(options, run, [*names, "inFeatures"])

    cases = {
        "batch": make(24, 3, (2,), 5),
        "no leading dimension": make(12, 2, (), 7),
        "two leading dimensions": make(20, 5, (2, 2), 3),
        "one token": make(16, 4, (3,), 1),
        "past one tile": make(18, 1, (1,), 31),
    }
    if with_rope:
        cases["given positions"] = make(12, 3, (2,), 4, torch.tensor([[0, 3, 4, 31]]))
        cases["positions per sequence"] = make(12, 3, (2,), 4, torch.tensor([[0, 1, 2, 3], [9, 7, 8, 20]]))
    return cases


def transformer_block_cases():
    def make(d, num_heads, d_ff, lead, T):
        config = {"dModel": d, "numHeads": num_heads, "dFf": d_ff, "ropeTheta": 10000.0}
        options = {
            "dModel": d,
            "numHeads": num_heads,
            "dFf": d_ff,
            "maxSeqLen": 16,
            "theta": config["ropeTheta"],
            "weights": block_weights(config),
            "inFeatures": normal(*lead, T, d),
        }
        return case(options, lambda o: block(o["inFeatures"], o["weights"], config), ["inFeatures"])

    return {"batch": make(24, 3, 37, (2,), 7), "shorter than maxSeqLen": make(12, 2, 16, (), 3)}


def cross_entropy_cases():
    def make(inputs, targets):
        leaf = inputs.clone().requires_grad_()
        loss = F.cross_entropy(leaf, targets)
        loss.backward()
        return {
            "options": {"inputs": inputs, "targets": targets},
            "output": loss.item(),
            "gradients": {"inputs": leaf.grad},
        }

    return {
        "odd": make(normal(7, 13, scale=2.0), integers(13, 7)),
        "one row": make(normal(1, 3), torch.tensor([2])),
        "wide": make(normal(5, 257), integers(257, 5)),
        "huge": make(rounded(normal(4, 9, scale=1e4)), torch.tensor([0, 3, 8, 3])),
    }


def gradient_clipping_cases():
    def make(scale, max_norm):
        gradients = [normal(5, 3, scale=scale), normal(17, scale=scale), normal(2, 3, 1, scale=scale)]
        parameters = [torch.nn.Parameter(torch.zeros_like(g)) for g in gradients]
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient.clone()
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm).item()
        return {
            "options": {"gradients": gradients, "maxL2Norm": max_norm},
            "norm": norm,
            "output": [parameter.grad for parameter in parameters],
        }

    return {
        "above": make(1.0, 1.0),
        "below": make(0.1, 5.0),
        "so small that eps counts": make(1e-3, 1e-3),
        "zero": make(0.0, 1.0),
    }


def adamw_cases():
    def make(settings, steps, missing):
        """`missing` holds the (parameter, step) pairs whose gradient is null."""
        shapes = [(5, 3), (7,), (2, 2)]
        parameters = [torch.nn.Parameter(normal(*shape)) for shape in shapes]
        names = {"lr": "lr", "betas": "betas", "eps": "eps", "weightDecay": "weight_decay"}
        optimizer = torch.optim.AdamW(parameters, **{names[k]: v for k, v in settings.items()})
        records = [{"value": p.detach().clone(), "grads": [], "values": []} for p in parameters]
        for step in range(steps):
            for i, parameter in enumerate(parameters):
                parameter.grad = None if (i, step) in missing else normal(*shapes[i])
                records[i]["grads"].append(parameter.grad)
            optimizer.step()
            for parameter, record in zip(parameters, records):
                record["values"].append(parameter.detach().clone())
        return {"settings": settings, "parameters": records}

    never = {(2, step) for step in range(12)}
    custom = {"lr": 0.03, "betas": [0.9, 0.95], "eps": 1e-4, "weightDecay": 0.2}
    return {
        "defaults": make({}, 6, set()),
        "custom settings": make(custom, 12, set()),
        "a parameter without gradients": make(custom, 5, never),
        "a gradient that comes and goes": make(custom, 5, {(1, 0), (1, 2), (0, 3)}),
    }


def schedule(it, maximum, minimum, warmup, cycle):
    if it < warmup:
        return maximum * it / warmup
    if it > cycle:
        return minimum
    return minimum + (1 + math.cos((it - warmup) / (cycle - warmup) * math.pi)) / 2 * (maximum - minimum)


def schedule_cases():
    def make(maximum, minimum, warmup, cycle, count):
        options = {
            "maxLearningRate": maximum,
            "minLearningRate": minimum,
            "warmupIters": warmup,
            "cosineCycleIters": cycle,
        }
        return {"options": options, "rates": [schedule(it, maximum, minimum, warmup, cycle) for it in range(count)]}

    return {"warmup": make(1.0, 0.1, 7, 21, 25), "no warmup": make(3e-4, 0.0, 0, 9, 12)}


# -------------------------------------------------------------------------------------------------- models, trajectory


def model_case(config, batch, length, z_loss=0.0):
    """The loss is the cross-entropy; the gradients are also those of z_loss times the mean of log²Z."""
    weights = model_weights(config)
    tokens = integers(config["vocabSize"], batch, length + 1)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    logits = language_model(inputs, leaves, config)
    loss = loss_of(logits, targets)
    (loss + z_loss * torch.logsumexp(logits, -1).square().mean()).backward()
    return {
        "config": config,
        "zLoss": z_loss,
        "weights": weights,
        "inputs": inputs,
        "targets": targets,
        "logits": logits,
        "loss": loss.item(),
        "gradients": {name: leaf.grad for name, leaf in leaves.items()},
    }


BASE = {
    "vocabSize": 97,
    "contextLength": 24,
    "dModel": 32,
    "numLayers": 2,
    "numHeads": 4,
    "dFf": 56,
    "ropeTheta": 10000.0,
}
SMALL = BASE | {"vocabSize": 61, "contextLength": 16, "dModel": 24, "dFf": 37}


def models():
    return {
        "base": model_case(BASE, 2, 24),
        "shorter than the context": model_case(SMALL | {"numLayers": 1, "numHeads": 1}, 3, 7),
        "grouped-query": model_case(SMALL | {"numKeyValueHeads": 2}, 2, 16),
        "tied": model_case(SMALL | {"tieEmbeddings": True}, 2, 16),
        "post-norm": model_case(SMALL | {"norm": "post"}, 2, 15),
        "no norm": model_case(SMALL | {"norm": "none"}, 2, 16),
        "no rope": model_case(SMALL | {"position": "none"}, 2, 13),
        "silu": model_case(SMALL | {"ffn": "silu"}, 2, 16),
        "all ablations": model_case(
            SMALL
            | {"norm": "post", "position": "none", "ffn": "silu", "tieEmbeddings": True, "numKeyValueHeads": 1},
            2,
            16,
        ),
    }


def trajectory():
    """20 steps on sequences with a rule to learn: mostly the next token is 5 t + 1 modulo the vocabulary."""
    steps, batch, length = 20, 4, BASE["contextLength"]
    tokens = integers(BASE["vocabSize"], steps, batch, length + 1)
    surprise = torch.rand(tokens.shape, generator=generator) < 0.1
    for t in range(length):
        following = (5 * tokens[..., t] + 1) % BASE["vocabSize"]
        tokens[..., t + 1] = torch.where(surprise[..., t + 1], tokens[..., t + 1], following)
    inputs, targets = tokens[..., :-1].contiguous(), tokens[..., 1:].contiguous()

    initial = model_weights(BASE)
    settings = {
        "maxLearningRate": 5e-3,
        "minLearningRate": 5e-4,
        "warmupIters": 5,
        "cosineCycleIters": 18,
        "betas": [0.9, 0.95],
        "eps": 1e-8,
        "weightDecay": 0.1,
        "maxL2Norm": 1.0,
    }
    # The first step has iteration 1: iteration 0 of a warmup has the learning rate 0.
    shape = [settings[name] for name in ("maxLearningRate", "minLearningRate", "warmupIters", "cosineCycleIters")]
    rates = [schedule(step + 1, *shape) for step in range(steps)]

    def train(dtype):
        leaves = {name: weight.to(dtype, copy=True).requires_grad_() for name, weight in initial.items()}
        optimizer = torch.optim.AdamW(
            leaves.values(),
            betas=settings["betas"],
            eps=settings["eps"],
            weight_decay=settings["weightDecay"],
            foreach=False,
        )
        losses, norms = [], []
        for step in range(steps):
            optimizer.zero_grad()
            loss = loss_of(language_model(inputs[step], leaves, BASE), targets[step])
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(leaves.values(), settings["maxL2Norm"])
            for group in optimizer.param_groups:
                group["lr"] = rates[step]
            optimizer.step()
            losses.append(loss.item())
            norms.append(norm.item())
        with torch.no_grad():
            after = loss_of(language_model(inputs[-1], leaves, BASE), targets[-1]).item()
        return leaves, losses, norms, after

    final, losses, norms, after = train(torch.float32)
    _, losses64, norms64, after64 = train(torch.float64)
    drift = max(abs(a - b) for a, b in zip([*losses, after], [*losses64, after64]))
    print(f"trajectory: loss {losses[0]:.4f} to {losses[-1]:.4f}, norms {min(norms):.3f} to {max(norms):.3f}, ", end="")
    print(f"float32 differs from float64 by at most {drift:.1e}")
    return {
        "config": BASE,
        "settings": settings,
        "inputs": inputs,
        "targets": targets,
        "learningRates": rates,
        "initial": initial,
        "losses": losses,
        "norms": norms,
        "final": final,
        "lossAfter": after,
        "float64": {"losses": losses64, "norms": norms64, "lossAfter": after64},
    }


if __name__ == "__main__":
    save(
        "operations",
        {
            "linear": linear_cases(),
            "embedding": embedding_cases(),
            "rmsnorm": rmsnorm_cases(),
            "silu": silu_cases(),
            "swiglu": swiglu_cases(),
            "softmax": softmax_cases(),
            "scaledDotProductAttention": attention_cases(),
            "rope": rope_cases(),
            "multiheadSelfAttention": self_attention_cases(with_rope=False),
            "multiheadSelfAttentionWithRope": self_attention_cases(with_rope=True),
            "transformerBlock": transformer_block_cases(),
            "crossEntropy": cross_entropy_cases(),
            "gradientClipping": gradient_clipping_cases(),
            "adamw": adamw_cases(),
            "lrCosineSchedule": schedule_cases(),
        },
    )
    save("models", models())
    save("trajectory", trajectory())
    save("capped", {"soft cap and z-loss": model_case(SMALL | {"numLayers": 1, "logitSoftCap": 1.5}, 2, 16, z_loss=0.02)})
