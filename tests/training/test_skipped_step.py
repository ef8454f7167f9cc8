"""A step that the guard finds bad: on any mesh it changes nothing but counts."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from gemma_train.leaves import by_path
from gemma_train.placement import place
from gemma_train.training.state import initial_state
from gemma_train.training.step import make_step

NAN = float("nan")


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)], ids=str)
def test_a_bad_step_leaves_parameters_and_moments_bit_for_bit(run_on, batch_of, mesh_of, mesh):
    config = run_on(*mesh, shallow=True)
    with mesh_of(*mesh):
        on, step = jax.sharding.get_mesh(), make_step(config)
        state, first = step(initial_state(config), place(batch_of(0), on, 8))
        before = {path: np.asarray(leaf) for path, leaf in by_path(state).items()}
        poisoned = replace(batch_of(1), weights_bt=batch_of(1).weights_bt * NAN)
        state, bad = step(state, place(poisoned, on, 8))
        after = {path: np.asarray(leaf) for path, leaf in by_path(state).items()}
        state, good = step(state, place(batch_of(1), on, 8))
    assert [int(one["skipped"]) for one in (first, bad, good)] == [0, 1, 0]
    assert any(np.any(leaf) for path, leaf in before.items() if path.startswith("moments/"))
    for path, leaf in before.items():
        if path.startswith(("model/", "moments/")):
            np.testing.assert_array_equal(after[path], leaf, err_msg=path)
    assert (int(before["step"]), int(after["step"]), int(state.step)) == (1, 2, 3)
    assert np.isfinite(good["loss"])


def test_the_learning_rate_waits_for_the_steps_that_were_skipped(run_on, batch_of, mesh_of):
    config = run_on(shallow=True)
    with mesh_of():
        on, step = jax.sharding.get_mesh(), make_step(config)
        poisoned = replace(batch_of(1), weights_bt=batch_of(1).weights_bt * NAN)
        state, rates = initial_state(config), []
        for batch in (batch_of(0), poisoned, batch_of(0)):
            state, scalars = step(state, place(batch, on, 8))
            rates.append(float(scalars["learning_rate"]))
        straight, (state, _) = [], step(initial_state(config), place(batch_of(0), on, 8))
        straight = float(step(state, place(batch_of(0), on, 8))[1]["learning_rate"])
    assert rates[1] == rates[2] == straight != rates[0]
