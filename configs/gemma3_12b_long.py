"""Gemma 3 12B from 32,768 to 131,072 tokens, after configs/gemma3_12b.py (arXiv 2503.19786).

The report gives length and factor; tokens, schedule, mixture and mesh are ours. A step has as many
tokens as in pretraining, and a third more, on one slice of three: 8,192 to a chip, along the same
axes as there.
"""

from dataclasses import replace

from gemma_train.config import TokenSource, load
from gemma_train.stages.long_context import long_context
from gemma_train.stages.pretrain import KEEP_ALL_BUT_WIDE

pretrained = load("configs/gemma3_12b.py")

extended = long_context(
    pretrained,
    length=131_072,
    tokens=120e9,
    peak_lr=2e-5,
    documents=(TokenSource(path="data/gemma3_long/train"),),
    batch_rows=128,
    mesh=replace(pretrained.mesh, replica=8, slices=1),
)

config = replace(extended, compute=KEEP_ALL_BUT_WIDE)
