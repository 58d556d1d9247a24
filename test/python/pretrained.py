"""Continues a text with an exported model through the transformers library alone: folder, prompt, number of tokens."""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, prompt, count = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
tokens = tokenizer(prompt, return_tensors="pt")["input_ids"]
with torch.no_grad():
    for _ in range(int(count)):
        logits = model(tokens[:, -model.config.n_positions :]).logits
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
print(type(model).__name__)
print(tokenizer.decode(tokens[0]))
