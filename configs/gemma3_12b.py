"""Gemma 3 12B: 12T tokens on 6,144 v4 (arXiv 2503.19786, section 2.2 and table 2)."""

from gemma_train.config import MeshConfig
from gemma_train.model.sizes import GEMMA3_12B
from gemma_train.stages.pretrain import KEEP_PRODUCTS, pretraining

config = pretraining(
    "gemma3_12b",
    GEMMA3_12B,
    tokens=12e12,
    batch_rows=384,
    mesh=MeshConfig(
        replica=24, data=16, seq=16, runtime="many_processes", topology="v4:8x16x16", slices=3
    ),
    peak_lr=2e-4,
    compute=KEEP_PRODUCTS,
)
