"""The toy of configs/verses_512.py from 512 to 4,096 tokens: the long-context stage on a CPU."""

from gemma_train.config import load
from gemma_train.stages.long_context import long_context

config = long_context(
    load("configs/verses_512.py"),
    tokens=100 * 4096,
    peak_lr=1e-3,
    warmup_steps=10,
    folder="runs/verses_4096",
)
