"""Gemma 3 12B from 32,768 to 131,072 tokens, after configs/gemma3_12b.py (arXiv 2503.19786).

The report gives length and factor; tokens, schedule, mixture and mesh are ours. A step has as many
tokens as in pretraining, in a quarter of the rows: a chip still holds 2,048 tokens of one.
"""

from dataclasses import replace

from gemma_train.config import TokenSource, load
from gemma_train.stages.long_context import long_context

pretrained = load("configs/gemma3_12b.py")

config = long_context(
    pretrained,
    length=131_072,
    tokens=120e9,
    peak_lr=2e-5,
    documents=(TokenSource(path="data/gemma3_long/train"),),
    held_out=("data/gemma3_long/held_out",),
    mesh=replace(pretrained.mesh, data=4, seq=64),
)
