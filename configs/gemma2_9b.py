"""Gemma 2 9B: 8T tokens on 4,096 v4 (arXiv 2408.00118, section 3 and table 3).

The mesh is ours; the report distils it, the loss here is the next token's.
"""

from gemma_train.config import MeshConfig
from gemma_train.model.sizes import GEMMA2_9B
from gemma_train.stages.pretrain import pretraining

config = pretraining(
    "gemma2_9b",
    GEMMA2_9B,
    tokens=8e12,
    batch_rows=1024,
    mesh=MeshConfig(replica=16, data=64, seq=4, runtime="many_processes"),
    peak_lr=3e-4,
)
