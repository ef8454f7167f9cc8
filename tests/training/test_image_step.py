"""A step over rows with images: microbatches and meshes change nothing, and the images matter."""

from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest

from gemma_train.config import ImageRows, VisionConfig
from gemma_train.leaves import by_path
from gemma_train.placement import place
from gemma_train.training.state import initial_state
from gemma_train.training.step import make_step
from tests.tolerances import assert_close, assert_close_leaves
from tests.training.conftest import LENGTH, ROWS

VISION = VisionConfig(side=8, patch=2, width=12, layers=1, heads=2, hidden=16, tokens=4)
PER_ROW = 2


@pytest.fixture(scope="module")
def with_images(batch_of):
    """Rows of up to two images, across the borders of any split of positions; one has none."""
    random, batch = np.random.default_rng(0), batch_of(0)
    soft = np.full((ROWS, LENGTH), -1, np.int32)
    for row in range(1, ROWS):
        for image, start in enumerate((row % 5, 6 + row % 7)[: 1 + row % 2]):
            soft[row, start : start + VISION.tokens] = image * VISION.tokens + np.arange(4)
    images = random.normal(size=(ROWS, PER_ROW, VISION.tokens, VISION.width))
    segments = np.ones_like(batch.segments_bt)  # an image is of one document
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), segments.shape)
    weights = batch.weights_bt * (np.roll(soft, -1, axis=1) < 0)
    return replace(
        batch,
        positions_bt=np.array(positions),
        segments_bt=segments,
        weights_bt=np.float32(weights),
        soft_bt=soft,
        images_bipe=images.astype(ml_dtypes.bfloat16),
    )


@pytest.fixture(scope="module")
def stepped(run_on, with_images, mesh_of):
    """The scalars and the leaves after one step of a mesh, with so many microbatches."""

    def run(mesh: tuple[int, int, int], accumulation: int, batch=with_images):
        config = run_on(*mesh, accumulation=accumulation, shallow=True)
        config = replace(
            config,
            model=replace(config.model, vision=VISION),
            data=replace(config.data, images=ImageRows(store="none", per_row=PER_ROW)),
        )
        with mesh_of(*mesh):
            placed = place(batch, jax.sharding.get_mesh(), config.data.batch_rows)
            state, scalars = make_step(config)(initial_state(config), placed)
            return jax.tree.map(float, scalars), jax.tree.map(np.asarray, by_path(state))

    return run


@pytest.mark.parametrize(
    ("mesh", "accumulation"), [((1, 1, 1), 2), ((2, 2, 2), 2), ((1, 8, 1), 1), ((1, 2, 4), 4)]
)
def test_a_step_is_the_same_on_any_mesh_in_any_microbatches(mesh, accumulation, stepped):
    (found, state), (wanted, expected) = stepped(mesh, accumulation), stepped((1, 1, 1), 1)
    for name in wanted:
        assert_close(found[name], wanted[name], "deep fp32", name)
    assert_close_leaves(state, expected, "deep fp32")


def test_norm_and_projection_learn_from_images_alone(stepped, with_images):
    text = replace(with_images, soft_bt=np.full_like(with_images.soft_bt, -1))
    (_, seen), (_, unseen) = stepped((1, 1, 1), 1), stepped((1, 1, 1), 1, text)
    names = [name for name in seen if "moments" in name and "soft_tokens" in name]
    assert len(names) == 4
    for name in names:
        assert seen[name].any() and not unseen[name].any(), name


def test_what_stands_below_a_soft_token_does_not_matter(stepped, with_images):
    tokens = np.where(with_images.soft_bt >= 0, 7, with_images.tokens_bt)
    (found, _), (wanted, _) = (
        stepped((1, 1, 1), 1, replace(with_images, tokens_bt=tokens)),
        stepped((1, 1, 1), 1),
    )
    assert found == wanted
