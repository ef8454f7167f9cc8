"""A step against a teacher's candidates: microbatches and meshes change nothing."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from gemma_train.leaves import by_path
from gemma_train.losses.distillation import Distillation, Stored
from gemma_train.placement import place
from gemma_train.samplers import TopK
from gemma_train.training.state import initial_state
from gemma_train.training.step import make_step
from tests.tolerances import assert_close, assert_close_leaves
from tests.training.conftest import LENGTH, ROWS, VOCABULARY

KEPT = 9
LOSS = Distillation(
    teacher=Stored(folder="none", weights="none"),
    sampler=TopK(candidates=KEPT),
    hard_label_weight=0.25,
    z_loss=0.01,
    chunk=7,
)


@pytest.fixture(scope="module")
def stepped(run_on, batch_of, mesh_of):
    """The scalars and the leaves after one step of a mesh, with so many microbatches."""
    random = np.random.default_rng(0)
    batch = replace(
        batch_of(0),
        candidates_btq=random.integers(0, VOCABULARY, (ROWS, LENGTH, KEPT), dtype=np.int32),
        probabilities_btq=random.dirichlet(np.ones(KEPT), (ROWS, LENGTH)).astype(np.float32),
    )

    def run(mesh: tuple[int, int, int], accumulation: int, loss: Distillation):
        config = run_on(*mesh, accumulation=accumulation, loss=loss, shallow=True)
        with mesh_of(*mesh):
            placed = place(batch, jax.sharding.get_mesh(), config.data.batch_rows)
            state, scalars = make_step(config)(initial_state(config), placed)
            return jax.tree.map(float, scalars), jax.tree.map(np.asarray, by_path(state))

    return run


@pytest.mark.parametrize(
    ("mesh", "accumulation"), [((1, 1, 1), 2), ((2, 2, 2), 2), ((1, 8, 1), 1), ((1, 2, 4), 4)]
)
@pytest.mark.parametrize("changes", [{}, {"temperature": 2.0}], ids=repr)
def test_a_step_is_the_same_on_any_mesh_in_any_microbatches(mesh, accumulation, changes, stepped):
    loss = replace(LOSS, **changes)
    (found, state), (wanted, expected) = (
        stepped(mesh, accumulation, loss),
        stepped((1, 1, 1), 1, loss),
    )
    for name in wanted:
        assert_close(found[name], wanted[name], "deep fp32", name)
    assert_close_leaves(state, expected, "deep fp32")
