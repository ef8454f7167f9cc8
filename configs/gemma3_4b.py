"""Gemma 3 4B: 4T tokens on 2,048 v5e (arXiv 2503.19786, section 2.2 and table 2)."""

from gemma_train.config import MeshConfig
from gemma_train.model.sizes import GEMMA3_4B
from gemma_train.stages.pretrain import KEEP_PRODUCTS, pretraining

config = pretraining(
    "gemma3_4b",
    GEMMA3_4B,
    tokens=4e12,
    batch_rows=128,
    mesh=MeshConfig(
        replica=8, data=16, seq=16, runtime="many_processes", topology="v5e:16x16", slices=8
    ),
    peak_lr=3e-4,
    compute=KEEP_PRODUCTS,
)
