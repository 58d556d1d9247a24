"""Trains a GPT in PyTorch as a peer of a swarm, behind this machine's Shoal node (`shoal daemon`).

    python scripts/train.py --data=moby.txt                     creates a run and prints the link for others
    python scripts/train.py --run=shoal:…                       joins one, whoever trains the other peers
    python scripts/train.py --run=shoal:… --device=cuda --dtype=bfloat16

It is the GPT of the embedded engine (src/model/gpt.ts): the same names, shapes and loss, so that both train in one
swarm. Everything below is there to be changed; any of the numbers may be set as --name=value.
"""

import ast
import logging
import math
import sys
import time
from contextlib import nullcontext
from hashlib import sha256

import torch
import torch.nn as nn
import torch.nn.functional as F

import shoal

# ----------------------------------------------------------------------------------------------------------------------
# the swarm
run = ""  # id or shoal: link of the run to join; '' creates one
data_dir = ""  # data folder of the node; '' is that of this user
data = ""  # text of this peer's own (of all peers, in a new run); '' is the text that the run shares
outer_steps = 0  # stop after so many, and leave the run to go on; 0 is until its end
# the machine
device = "cuda" if torch.cuda.is_available() else "cpu"
dtype = "float32"  # of the matrix products: 'float32', or 'bfloat16' and 'float16' on a GPU
threads = 0  # of PyTorch on a CPU; 0 is its own choice
compile = False  # PyTorch 2: a minute at the start, then faster
log_interval = 10  # inner steps between two lines
# a run that is created (one that is joined has its own)
name = "train.py"
total_outer_steps = 50
inner_steps = 20  # between two rounds
min_peers = 1  # training starts when so many are there
n_layer = 4
n_head = 4
n_embd = 128
block_size = 64
batch_size = 12
learning_rate = 3e-3  # of AdamW, at its peak
warmup_iters = 40
# ----------------------------------------------------------------------------------------------------------------------
for argument in sys.argv[1:]:
    key, _, value = argument.partition("=")
    key = key.removeprefix("--").replace("-", "_")
    if key in ("h", "help") or key not in globals() or key.startswith("_"):
        sys.exit(__doc__ if key in ("h", "help") else f"unknown setting {argument}; see --help")
    known = type(globals()[key])
    globals()[key] = value if known is str else known(ast.literal_eval(value))
logging.basicConfig(format="%(message)s")
if threads:
    torch.set_num_threads(threads)


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Dense(nn.Module):
    """y = x W + b, with W [inputs, outputs] as in GPT-2's own files."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.c_attn = Dense(width, 3 * width)
        self.c_proj = Dense(width, width)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.heads, C // self.heads).transpose(1, 2)
            for part in self.c_attn(x).split(C, dim=2)
        )
        if hasattr(F, "scaled_dot_product_attention"):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:  # before PyTorch 2
            scores = q @ k.transpose(2, 3) / math.sqrt(C // self.heads)
            future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
            y = scores.masked_fill(future, -math.inf).softmax(dim=3) @ v
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    def __init__(self, width, activation):
        super().__init__()
        self.activation = F.gelu if activation == "gelu" else lambda x: F.relu(x).square()
        self.c_fc = Dense(width, 4 * width)
        self.c_proj = Dense(4 * width, width)

    def forward(self, x):
        return self.c_proj(self.activation(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, width, heads, activation):
        super().__init__()
        self.ln_1 = Norm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = Norm(width)
        self.mlp = MLP(width, activation)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """`spec` is the manifest's `model`. The parameters come from the swarm: none are drawn here."""

    def __init__(self, spec):
        super().__init__()
        width = spec["embedding"]
        blocks = [Block(width, spec["heads"], spec["activation"]) for _ in range(spec["layers"])]
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(spec["vocabulary"], width),
                "wpe": nn.Embedding(spec["context"], width),
                "h": nn.ModuleList(blocks),
                "ln_f": Norm(width),
            }
        )

    def forward(self, tokens, targets):
        t = self.transformer
        x = t.wte(tokens) + t.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in t.h:
            x = block(x)
        logits = F.linear(t.ln_f(x), t.wte.weight)  # the head is tied
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


# ----------------------------------------------------------------------------------------------------------------------
# the run
node = shoal.Node(data_dir)
if run:
    swarm = node.join(run, data=data or None)
else:
    if not data:
        sys.exit("name a text with --data=PATH, or a run to join with --run=LINK")
    swarm = node.create(
        {
            "name": name,
            "data": data,
            "model": {"layers": n_layer, "heads": n_head, "embedding": n_embd, "context": block_size},
            "batchSequences": batch_size,
            "innerSteps": inner_steps,
            "outerSteps": total_outer_steps,
            "inner": {"learningRate": learning_rate, "warmupSteps": warmup_iters},
            "limits": {"minPeers": min_peers},
        }
    )
    print(f"others join with {swarm.invite()}", flush=True)
manifest = swarm.manifest
peer = node.status()["peerId"]
spec, inner, batch = manifest["model"], manifest["inner"], manifest["batchSequences"]
if spec["kind"] != "gpt":
    sys.exit("this run is of another model: bring your own script")

# ----------------------------------------------------------------------------------------------------------------------
# the data: text to tokens, the last part held out, as on every other peer
text = open(data, "rb").read() if run and data else swarm.text()
if text is None:
    sys.exit("this run shares no text: bring your own with --data=PATH")
if manifest["data"]["tokenizer"]["kind"] == "byte":
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
else:
    ids = {character: i for i, character in enumerate(manifest["data"]["tokenizer"]["vocabulary"])}
    tokens = torch.tensor([ids[character] for character in text.decode("utf-8-sig")])
held = int(len(tokens) * manifest["data"]["validationFraction"])
train_tokens, validation_tokens = tokens[: len(tokens) - held], tokens[len(tokens) - held :]


def windows(source, starts):
    """Inputs and, one token further, targets."""
    context = spec["context"]
    x = torch.stack([source[start : start + context] for start in starts])
    y = torch.stack([source[start + 1 : start + 1 + context] for start in starts])
    return x.to(device), y.to(device)


def seed(outer_step):
    """Peers see different batches; one that starts again sees the same ones again."""
    return int.from_bytes(sha256(f"{swarm.id} {peer} {outer_step}".encode()).digest()[:7], "big")


# ----------------------------------------------------------------------------------------------------------------------
# model and optimizer
model = GPT(spec).to(device)
swarm.parameters(model)
forward = torch.compile(model) if compile else model
if dtype == "float32":
    autocast = nullcontext()
else:
    autocast = torch.autocast(device.split(":")[0], getattr(torch, dtype))
matrices = [p for p in model.parameters() if p.dim() > 1]
vectors = [p for p in model.parameters() if p.dim() < 2]
optimizer = torch.optim.AdamW(
    [
        {"params": matrices, "weight_decay": inner["weightDecay"]},
        {"params": vectors, "weight_decay": 0.0},
    ],
    lr=inner["learningRate"],
    betas=(inner["beta1"], inner["beta2"]),
    eps=inner["epsilon"],
)


def learning_rate_at(step):
    """Linear warm-up, then cosine to a share of the peak at the end of the run."""
    warmup = min(1, (step + 1) / max(1, inner["warmupSteps"]))
    progress = min(1, step / (swarm.inner_steps * swarm.outer_steps))
    cosine = (1 - inner["finalFraction"]) / 2 * (1 + math.cos(math.pi * progress))
    return inner["learningRate"] * warmup * (inner["finalFraction"] + cosine)


@torch.no_grad()
def validation_loss(batches=8):
    """On windows spread evenly over the held-out text: those of the embedded engine."""
    count, last = batches * batch, len(validation_tokens) - spec["context"] - 1
    starts = [i * last // max(1, count - 1) for i in range(count)]
    losses = [model(*windows(validation_tokens, starts[i : i + batch])) for i in range(0, count, batch)]
    return sum(losses).item() / batches


parameters = sum(p.numel() for p in model.parameters())
print(
    f"run {swarm.id}: {parameters} parameters on {device}, outer step {swarm.step} of {swarm.outer_steps}, "
    f"validation loss {validation_loss():.6f}",
    flush=True,
)

# ----------------------------------------------------------------------------------------------------------------------
# training: inner steps alone, then an outer step with the swarm
steps_left = outer_steps or swarm.outer_steps
while not swarm.finished and steps_left > 0:
    steps_left -= 1
    generator = torch.Generator().manual_seed(seed(swarm.step))
    started, total, trained = time.time(), 0.0, 0
    for inner_step in range(swarm.inner_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(swarm.step * swarm.inner_steps + inner_step)
        starts = torch.randint(len(train_tokens) - spec["context"], (batch,), generator=generator)
        with autocast:
            loss = forward(*windows(train_tokens, starts))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), inner["clipNorm"])
        optimizer.step()
        total += loss.item()
        trained += batch * spec["context"]
        enough = swarm.progress(loss.item(), trained)
        if (inner_step + 1) % log_interval == 0:
            print(f"  inner step {inner_step + 1}: loss {loss.item():.4f}", flush=True)
        if enough:  # the swarm is done with this outer step
            break
    speed = trained / (time.time() - started)
    result = swarm.outer_step(model, tokens=trained, loss=total / (inner_step + 1))
    partners = f" with {len(result.partners)}" if result.partners else ""
    print(
        f"outer step {result.outer_step}: loss {total / (inner_step + 1):.4f}, {speed:.0f} tokens/s, "
        f"{result.outcome}{partners}",
        flush=True,
    )

if swarm.finished:
    swarm.wait()
    swarm.parameters(model)
print(f"validation loss {validation_loss():.6f} after outer step {swarm.step}", flush=True)
