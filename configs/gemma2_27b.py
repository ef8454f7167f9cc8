"""Gemma 2 27B: 13T tokens on 6,144 v5p (arXiv 2408.00118, section 3 and table 3).

The mesh is ours.
"""

from gemma_train.config import MeshConfig
from gemma_train.model.sizes import GEMMA2_27B
from gemma_train.stages.pretrain import pretraining

config = pretraining(
    "gemma2_27b",
    GEMMA2_27B,
    tokens=13e12,
    batch_rows=768,
    mesh=MeshConfig(replica=24, data=32, seq=8, runtime="many_processes"),
    peak_lr=2e-4,
)
