"""A step computed twice: equal on sound hardware, and found where it is not."""

import jax
import numpy as np
import pytest

from gemma_train.errors import FaultyHardware
from gemma_train.leaves import by_path
from gemma_train.placement import place
from gemma_train.training.replay import replayed
from gemma_train.training.state import initial_state
from gemma_train.training.step import make_step


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)], ids=str)
def test_a_replayed_step_is_the_step(run_on, batch_of, mesh_of, mesh):
    config = run_on(*mesh, shallow=True)
    with mesh_of(*mesh):
        batch, step = place(batch_of(0), jax.sharding.get_mesh(), 8), make_step(config)
        once, scalars = step(initial_state(config), batch)
        again, same = replayed(step, initial_state(config), batch)
        assert float(scalars["loss"]) == float(same["loss"])
        for path, leaf in by_path(once).items():
            np.testing.assert_array_equal(by_path(again)[path], leaf, err_msg=path)


def test_a_step_that_gives_two_states_is_refused(run_on, batch_of, mesh_of):
    config = run_on(shallow=True)
    with mesh_of():
        on, step = jax.sharding.get_mesh(), make_step(config)
        batches = iter([place(batch_of(0), on, 8), place(batch_of(1), on, 8)])

        def faulty(state, batch):
            return step(state, next(batches))

        with pytest.raises(FaultyHardware, match="step 1, computed twice"):
            replayed(faulty, initial_state(config), None)
