"""Gemma 2 2B: 2T tokens on 512 v5e (arXiv 2408.00118, section 3 and table 3).

The report distils it; the loss here is the next token's.
"""

from gemma_train.config import MeshConfig
from gemma_train.model.sizes import GEMMA2_2B
from gemma_train.stages.pretrain import pretraining

config = pretraining(
    "gemma2_2b",
    GEMMA2_2B,
    tokens=2e12,
    batch_rows=512,
    mesh=MeshConfig(replica=2, data=256, runtime="many_processes"),
    peak_lr=3e-4,
)
