"""Gemma 1 7B: 6T tokens on 4,096 v5e (arXiv 2403.08295, sections 3 and 4).

The mesh is ours.
"""

from gemma_train.config import MeshConfig
from gemma_train.model.sizes import GEMMA1_7B
from gemma_train.stages.pretrain import pretraining

config = pretraining(
    "gemma1_7b",
    GEMMA1_7B,
    tokens=6e12,
    batch_rows=1024,
    mesh=MeshConfig(replica=16, data=64, seq=4, runtime="many_processes"),
    peak_lr=3e-4,
)
