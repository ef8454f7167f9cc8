"""Gemma 3 27B: 14T tokens on 6,144 v5p (arXiv 2503.19786, section 2.2 and table 2)."""

from gemma_train.config import MeshConfig
from gemma_train.model.sizes import GEMMA3_27B
from gemma_train.stages.pretrain import KEEP_PRODUCTS, pretraining

config = pretraining(
    "gemma3_27b",
    GEMMA3_27B,
    tokens=14e12,
    batch_rows=768,
    mesh=MeshConfig(replica=32, data=24, seq=8, runtime="many_processes", topology="v5p:16x16x24"),
    peak_lr=2e-4,
    compute=KEEP_PRODUCTS,
)
