"""The step of `cpu_step.py` by Hugging Face transformers on PyTorch; run by it, in a Python of its
own. One step, timed, for each line on standard input."""

import sys
import time

import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

config = Gemma3TextConfig(
    vocab_size=32_768,
    hidden_size=256,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=64,
    intermediate_size=1024,
    sliding_window=128,
    query_pre_attn_scalar=64,
    max_position_embeddings=512,
    layer_types=["sliding_attention"] * 5 + ["full_attention"],
    use_cache=False,
)
model = Gemma3ForCausalLM(config).float()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
tokens = torch.randint(0, config.vocab_size, (8, 512))


def step() -> None:
    optimizer.zero_grad(set_to_none=True)
    model(input_ids=tokens, labels=tokens).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


step()
for _ in sys.stdin:
    began = time.perf_counter()
    step()
    print(time.perf_counter() - began, flush=True)
