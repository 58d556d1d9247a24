"""The built-in GPT in plain PyTorch, for `npm run bench -- train`: the same parameters, batches and AdamW.

Speaks one JSON object per line, as scripts/bench/train-engine.ts does. First line in: the set-up (model, inner
optimizer, files of fp32 parameters and int32 batches, threads); answered when it is ready. Then
`{"command": "gradient", "path": …}` or `{"command": "steps", "round": n}`, one answer each.
"""

import json
import resource
import sys
import time

import torch
import torch.nn.functional as F


class Gpt:
    """GPT-2 with pre-LayerNorm; parameters by the names and in the layout of Hugging Face's GPT2LMHeadModel."""

    def __init__(self, spec, entries, flat):
        self.spec = spec
        self.entries = entries
        self.parameters = {
            e["name"]: flat[e["offset"] : e["offset"] + e["size"]]
            .view(e["shape"])
            .clone()
            .requires_grad_()
            for e in entries
        }

    def norm(self, x, name):
        p = self.parameters
        return F.layer_norm(x, (x.shape[-1],), p[name + ".weight"], p[name + ".bias"], 1e-5)

    def dense(self, x, name):
        p = self.parameters
        return torch.addmm(p[name + ".bias"], x, p[name + ".weight"])

    def attention(self, qkv, sequences):
        context, heads = self.spec["context"], self.spec["heads"]
        width = self.spec["embedding"]
        q, k, v = (
            part.view(sequences, context, heads, width // heads).transpose(1, 2)
            for part in qkv.split(width, dim=1)
        )
        if hasattr(F, "scaled_dot_product_attention"):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = (q @ k.transpose(-2, -1)) * (width // heads) ** -0.5
            future = torch.ones(context, context, dtype=torch.bool).triu(1)
            y = F.softmax(scores.masked_fill(future, float("-inf")), dim=-1) @ v
        return y.transpose(1, 2).reshape(sequences * context, width)

    def loss(self, tokens, targets):
        p = self.parameters
        context = self.spec["context"]
        sequences = tokens.numel() // context
        positions = p["transformer.wpe.weight"]
        x = F.embedding(tokens, p["transformer.wte.weight"]).view(sequences, context, -1)
        x = (x + positions).view(sequences * context, -1)
        for layer in range(self.spec["layers"]):
            block = f"transformer.h.{layer}"
            qkv = self.dense(self.norm(x, block + ".ln_1"), block + ".attn.c_attn")
            x = x + self.dense(self.attention(qkv, sequences), block + ".attn.c_proj")
            h = self.dense(self.norm(x, block + ".ln_2"), block + ".mlp.c_fc")
            h = F.gelu(h) if self.spec["activation"] == "gelu" else F.relu(h).square()
            x = x + self.dense(h, block + ".mlp.c_proj")
        logits = F.linear(self.norm(x, "transformer.ln_f"), p["transformer.wte.weight"])
        return F.cross_entropy(logits, targets)


def create_optimizer(gpt, inner):
    decayed = [gpt.parameters[e["name"]] for e in gpt.entries if e["decay"]]
    others = [gpt.parameters[e["name"]] for e in gpt.entries if not e["decay"]]
    groups = [
        {"params": decayed, "weight_decay": inner["weightDecay"]},
        {"params": others, "weight_decay": 0.0},
    ]
    options = {
        "lr": inner["learningRate"],
        "betas": (inner["beta1"], inner["beta2"]),
        "eps": inner["epsilon"],
    }
    try:  # The fused CPU kernel came with 2.4: use the fastest this PyTorch has.
        return torch.optim.AdamW(groups, fused=True, **options)
    except (RuntimeError, TypeError, ValueError):
        return torch.optim.AdamW(groups, foreach=True, **options)


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main():
    setup = json.loads(sys.stdin.readline())
    torch.set_num_threads(setup["threads"])
    flat = torch.frombuffer(bytearray(open(setup["parameters"], "rb").read()), dtype=torch.float32)
    batches = torch.frombuffer(bytearray(open(setup["batches"], "rb").read()), dtype=torch.int32)
    batches = batches.view(-1, setup["stepsPerRound"], 2, setup["tokens"]).long()
    gpt = Gpt(setup["model"], setup["entries"], flat)
    optimizer = create_optimizer(gpt, setup["inner"])
    everything = list(gpt.parameters.values())

    def forward_backward(batch):
        tokens, targets = batch
        optimizer.zero_grad(set_to_none=True)
        loss = gpt.loss(tokens, targets)
        loss.backward()
        return loss

    def step(batch):
        loss = forward_backward(batch)
        torch.nn.utils.clip_grad_norm_(everything, setup["inner"]["clipNorm"])
        optimizer.step()
        return loss.item()

    answer({"version": f"PyTorch {torch.__version__}", "gemmGflops": gemm_gflops()})
    for line in sys.stdin:
        request = json.loads(line)
        if request["command"] == "gradient":
            loss = forward_backward(batches[0][0])
            with open(request["path"], "wb") as file:
                for parameter in everything:
                    file.write(parameter.grad.numpy().tobytes())
            answer({"loss": loss.item()})
            continue
        cpu, wall = cpu_seconds(), time.perf_counter()
        losses = [step(batch) for batch in batches[request["round"]]]
        steps = len(losses)
        answer(
            {
                "cpuMs": (cpu_seconds() - cpu) * 1e3 / steps,
                "wallMs": (time.perf_counter() - wall) * 1e3 / steps,
                "loss": sum(losses) / steps,
                "peakBytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )


def gemm_gflops():
    """Speed of the matrix product per CPU-second, to tell an optimised BLAS from the reference one."""
    a = torch.rand(512, 512)
    a @ a
    cpu = cpu_seconds()
    for _ in range(20):
        a @ a
    return 20 * 2 * 512**3 / (cpu_seconds() - cpu) / 1e9


def answer(fields):
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    main()
