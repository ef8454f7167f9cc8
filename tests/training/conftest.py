"""A tiny run on any mesh, and batches for it."""

from dataclasses import replace

import numpy as np
import pytest

ROWS, LENGTH, VOCABULARY = 8, 16, 64


@pytest.fixture(scope="session")
def run_on():
    """Makes the RunConfig of a tiny Gemma 3 on a mesh of (replica, data, seq)."""
    from gemma_train.config import DataConfig, MeshConfig, RunConfig, TokenSource
    from gemma_train.losses.next_token import NextToken
    from gemma_train.model import ComputeConfig, GemmaConfig
    from gemma_train.optimizer import OptimizerConfig

    def make(
        replica: int = 1, data: int = 1, seq: int = 1, *, shallow: bool = False, **changes
    ) -> RunConfig:
        values = {
            "folder": "nowhere",
            "model": GemmaConfig(
                vocabulary=VOCABULARY,
                width=16,
                layers=3,
                query_heads=4,
                key_value_heads=2,
                head_dimension=8,
                hidden=32,
                context=LENGTH,
                pattern=("local", "global"),
                window=5,
                query_key_norm=True,
                post_norms=True,
                global_rope_base=1_000_000.0,
            ),
            "data": DataConfig(
                tokenizer="none",
                train=(TokenSource(path="none"),),
                sequence_length=LENGTH,
                batch_rows=ROWS,
            ),
            "steps": 40,
            "loss": NextToken(z_loss=0.01, chunk=7),
            "optimizer": OptimizerConfig(peak_lr=0.01, warmup_steps=3),
            "compute": ComputeConfig(dtype="float32"),
            "mesh": MeshConfig(replica=replica, data=data, seq=seq),
        }
        if shallow:  # a third of the time to compile, where depth is not the point
            values["model"] = replace(values["model"], layers=1)
        return RunConfig(**{**values, **changes})

    return make


@pytest.fixture(scope="session")
def batch_of(packed):
    """Makes a batch of packed rows; how many tokens carry loss differs much from row to row."""
    from gemma_train.data.example import Batch

    def make(seed: int) -> Batch:
        random = np.random.default_rng(seed)
        positions, segments = packed(ROWS, LENGTH, seed=seed, mean=8, padding=4)
        tokens = random.integers(0, VOCABULARY, (ROWS, LENGTH + 1), dtype=np.int32)
        weights = random.random((ROWS, LENGTH)) < np.linspace(0.2, 1, ROWS)[:, None]
        return Batch(
            tokens_bt=tokens[:, :-1],
            targets_bt=tokens[:, 1:],
            positions_bt=positions,
            segments_bt=segments,
            weights_bt=np.float32(weights & (segments > 0)),
        )

    return make
