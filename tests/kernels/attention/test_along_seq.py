"""Sequences split over seq: logits, loss and gradients of a model are those of one device."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from gemma_train.kernels.attention import splash_tables
from gemma_train.losses.next_token import mean_next_token_loss_and_gradient
from gemma_train.model import ComputeConfig, Gemma, GemmaConfig
from gemma_train.vision import VisionConfig
from tests.model import test_images as images
from tests.tolerances import TOLERANCES, assert_close, assert_close_leaves

CONFIG = replace(images.CONFIG, context=2048)


def inputs(vision: VisionConfig, length: int, rows: int, border: int) -> dict:
    """Rows of random documents, each with images: one over every `border`, some between."""
    random, size = np.random.default_rng(length), vision.tokens
    segments, index = np.ones((rows, length), np.int32), np.full((rows, length), -1, np.int32)
    for row in range(rows):
        numbers = iter(range(3 * length))
        for place in range(border - 1, length - size, border):
            index[row, place - size // 2 : place - size // 2 + size] = next(numbers)
        for place in random.integers(0, length - size, length // border):
            if (index[row, place - 1 : place + size + 1] < 0).all():
                index[row, place : place + size] = next(numbers)
        inside = (index[row] >= 0) & (index[row] == np.roll(index[row], 1))
        begins = (random.random(length) < 6 / length) & ~inside
        segments[row] += np.cumsum(begins)
    segments[:, -length // 20 :][index[:, -length // 20 :] < 0] = 0
    starts = np.diff(segments, axis=1, prepend=-1) != 0
    places = np.arange(length, dtype=np.int32)
    positions = places - np.maximum.accumulate(np.where(starts, places, 0), axis=1)
    return {
        "tokens_bt": random.integers(0, CONFIG.vocabulary, (rows, length), dtype=np.int32),
        "positions_bt": np.int32(positions),
        "segment_ids_bt": segments,
        "image_embeddings": np.float32(
            random.normal(size=(index.max() + 1, vision.tokens, vision.width))
        ),
        "image_index_bt": index,
    }


def found(mesh, config: GemmaConfig, implementation: str, given: dict):
    """(logits of what is no padding, loss, gradients by name)."""
    compute = ComputeConfig(dtype="float32", remat="none", attention=implementation)
    with mesh:
        model = Gemma(config, compute, nnx.Rngs(0))
        logits = np.asarray(model.logits(**given)) * (given["segment_ids_bt"] > 0)[..., None]
        loss, gradient = mean_next_token_loss_and_gradient(model, **given)
        return logits, np.asarray(loss), jax.tree.map(np.asarray, gradient.parameters())


# (devices along seq, window, length): shards of 16 positions and of 4, in one case three blocks.
PLAIN = [(2, 6, 32), (4, 20, 64), (8, 6, 64), (8, 100, 64)]
SLOW = pytest.mark.slow
KERNEL = [
    (2, 100, 512),
    pytest.param(4, 200, 512, marks=SLOW),
    pytest.param(8, 150, 1024, marks=SLOW),
]


@pytest.mark.parametrize(("seq", "window", "length"), PLAIN)
def test_it_is_what_one_device_computes(seq, window, length, mesh_of):
    config = replace(CONFIG, window=window)
    given = inputs(images.VISION, length, 8 // seq, length // seq)
    check(mesh_of, seq, config, "xla", given)


@pytest.mark.parametrize(("seq", "window", "length"), KERNEL)
def test_so_it_is_with_the_kernel_of_tpus(seq, window, length, mesh_of, monkeypatch):
    monkeypatch.setattr(splash_tables, "BLOCK", 128)
    for tables in (splash_tables.kernel_near, splash_tables.kernel_to_all):
        tables.cache_clear()
    vision = replace(images.VISION, side=24, tokens=36)
    config = replace(CONFIG, window=window, layers=2, vision=vision)
    given = inputs(vision, length, 1, length // seq)
    check(mesh_of, seq, config, "splash", given)


def check(mesh_of, seq: int, config: GemmaConfig, implementation: str, given: dict):
    rows = len(given["tokens_bt"])
    alone = found(mesh_of(), config, "reference", given)
    split = found(mesh_of(1, rows, seq), config, implementation, given)
    assert_close(split[0], alone[0], "fp32", "logits")
    assert_close(split[1], alone[1], "fp32", "loss")
    assert_close_leaves(split[2], alone[2], "deep fp32")
    different, whole = (
        np.sqrt(sum(np.sum(np.square(one)) for one in leaves))
        for leaves in ([split[2][name] - alone[2][name] for name in alone[2]], alone[2].values())
    )
    assert different <= TOLERANCES["fp32"] * whole
