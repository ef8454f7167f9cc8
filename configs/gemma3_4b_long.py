"""Gemma 3 4B from 32,768 to 131,072 tokens, after configs/gemma3_4b.py (arXiv 2503.19786).

The report gives length and factor; tokens, schedule, mixture and mesh are ours. A step has as many
tokens as in pretraining, in a quarter of the rows on a quarter of the chips: 8,192 to each, along
the same axes as there.
"""

from dataclasses import replace

from gemma_train.config import TokenSource, load
from gemma_train.stages.long_context import long_context
from gemma_train.stages.pretrain import KEEP_ALL_BUT_WIDE

pretrained = load("configs/gemma3_4b.py")

extended = long_context(
    pretrained,
    length=131_072,
    tokens=40e9,
    peak_lr=3e-5,
    documents=(TokenSource(path="data/gemma3_long/train"),),
    mesh=replace(pretrained.mesh, replica=2, slices=2),
)

config = replace(extended, compute=KEEP_ALL_BUT_WIDE)
