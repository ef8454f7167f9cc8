"""Gemma 3 270M: 6T tokens (published with the model, August 2025).

The mesh, 256 v5e, is ours.
"""

from gemma_train.config import MeshConfig
from gemma_train.model.sizes import GEMMA3_270M
from gemma_train.stages.pretrain import pretraining

config = pretraining(
    "gemma3_270m",
    GEMMA3_270M,
    tokens=6e12,
    batch_rows=128,
    mesh=MeshConfig(replica=1, data=16, seq=16, runtime="many_processes"),
    peak_lr=6e-4,
)
