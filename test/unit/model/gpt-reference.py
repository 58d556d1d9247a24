"""Makes gpt-reference.json: loss and gradients of a tiny GPT by PyTorch in float64, for gpt.test.ts.

Run from the repository: python3 test/unit/model/gpt-reference.py > test/unit/model/gpt-reference.json
"""

import importlib.util
import json
import math

import torch

module = importlib.util.spec_from_file_location("bench_train", "scripts/bench/train.py")
bench = importlib.util.module_from_spec(module)
module.loader.exec_module(bench)

LAYERS, HEADS, WIDTH, CONTEXT, VOCABULARY, SEQUENCES = 2, 2, 12, 6, 9, 3


def shapes():
    yield "transformer.wte.weight", [VOCABULARY, WIDTH]
    yield "transformer.wpe.weight", [CONTEXT, WIDTH]
    for layer in range(LAYERS):
        block = f"transformer.h.{layer}"
        for name, shape in [
            ("ln_1.weight", [WIDTH]),
            ("ln_1.bias", [WIDTH]),
            ("attn.c_attn.weight", [WIDTH, 3 * WIDTH]),
            ("attn.c_attn.bias", [3 * WIDTH]),
            ("attn.c_proj.weight", [WIDTH, WIDTH]),
            ("attn.c_proj.bias", [WIDTH]),
            ("ln_2.weight", [WIDTH]),
            ("ln_2.bias", [WIDTH]),
            ("mlp.c_fc.weight", [WIDTH, 4 * WIDTH]),
            ("mlp.c_fc.bias", [4 * WIDTH]),
            ("mlp.c_proj.weight", [4 * WIDTH, WIDTH]),
            ("mlp.c_proj.bias", [WIDTH]),
        ]:
            yield f"{block}.{name}", shape
    yield "transformer.ln_f.weight", [WIDTH]
    yield "transformer.ln_f.bias", [WIDTH]


entries, offset = [], 0
for name, shape in shapes():
    size = math.prod(shape)
    entries.append({"name": name, "shape": shape, "offset": offset, "size": size})
    offset += size

flat = torch.sin(1 + 12.9898 * torch.arange(offset, dtype=torch.float64)) * 0.4
index = torch.arange(SEQUENCES * CONTEXT)
result = {"torch": torch.__version__, "losses": {}, "gradients": {}}
for activation in ["relu-squared", "gelu"]:
    spec = {
        "layers": LAYERS,
        "heads": HEADS,
        "embedding": WIDTH,
        "context": CONTEXT,
        "vocabulary": VOCABULARY,
        "activation": activation,
    }
    gpt = bench.Gpt(spec, entries, flat)
    loss = gpt.loss((index * index + 2) % VOCABULARY, (5 * index * index + 1) % VOCABULARY)
    loss.backward()
    result["losses"][activation] = loss.item()
    result["gradients"][activation] = {
        name: {
            "norm": parameter.grad.norm().item(),
            "projection": (parameter.grad.flatten() * torch.arange(parameter.numel()).double().cos())
            .sum()
            .item(),
        }
        for name, parameter in gpt.parameters.items()
    }
print(json.dumps(result, indent=2))
