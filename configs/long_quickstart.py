"""The toy of configs/quickstart_512.py from 512 to 4,096 tokens: the long-context stage on a CPU.

Half of its rows are of long documents: `gemma-train prepare data_recipes/quickstart_long.py`.
"""

from gemma_train.config import TokenSource, load
from gemma_train.stages.long_context import long_context

config = long_context(
    load("configs/quickstart_512.py"),
    tokens=96 * 4096,
    peak_lr=2e-3,
    warmup_steps=10,
    documents=(TokenSource(path="data/quickstart_long/train"),),
    held_out=("data/quickstart_long/held_out",),
)
