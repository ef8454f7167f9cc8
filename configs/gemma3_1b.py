"""Gemma 3 1B: 2T tokens on 512 v5e (arXiv 2503.19786, section 2.2 and table 2)."""

from gemma_train.config import MeshConfig
from gemma_train.model.sizes import GEMMA3_1B
from gemma_train.stages.pretrain import KEEP_PRODUCTS, pretraining

config = pretraining(
    "gemma3_1b",
    GEMMA3_1B,
    tokens=2e12,
    batch_rows=128,
    mesh=MeshConfig(
        replica=2, data=16, seq=16, runtime="many_processes", topology="v5e:16x16", slices=2
    ),
    peak_lr=4e-4,
    compute=KEEP_PRODUCTS,
)
