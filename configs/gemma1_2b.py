"""Gemma 1 2B: 3T tokens on 512 v5e (arXiv 2403.08295, sections 3 and 4).

The mesh is ours: the report splits a pod's 256 chips in a way that has no counterpart here.
"""

from gemma_train.config import MeshConfig
from gemma_train.model.sizes import GEMMA1_2B
from gemma_train.stages.pretrain import pretraining

config = pretraining(
    "gemma1_2b",
    GEMMA1_2B,
    tokens=3e12,
    batch_rows=512,
    mesh=MeshConfig(replica=2, data=256, runtime="many_processes"),
    peak_lr=3e-4,
)
