"""A step that the guard finds bad: on any mesh it changes nothing but counts."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from gemma_train.leaves import by_path
from gemma_train.placement import place
from gemma_train.training.checkpoint import Checkpoints
from gemma_train.training.position import Position
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


SEEN = 100  # steps after which a leap is told from the noise


def leaping(batch):
    """The same rows with a hundred times the gradient.

    Weights of either sign add up to nothing, so that what they are divided by does not undo it.
    """
    signs = np.where(np.arange(batch.weights_bt.size) % 2, -1, 1).reshape(batch.weights_bt.shape)
    return replace(batch, weights_bt=np.float32(100 * signs * (batch.weights_bt > 0)))


def leaves_of(state):
    return {path: np.asarray(leaf) for path, leaf in by_path(state).items()}


@pytest.fixture
def seen(run_on, batch_of, mesh_of, tmp_path):
    """(config, step, what places a batch, a state that has seen as much as the guard asks for)."""
    config = run_on(shallow=True, folder=str(tmp_path / "run"))
    with mesh_of():
        on, step = jax.sharding.get_mesh(), make_step(config)
        batches, state = [place(batch_of(seed), on, 8) for seed in range(4)], initial_state(config)
        for number in range(SEEN):
            state, scalars = step(state, batches[number % 4])
            assert not int(scalars["skipped"])
        yield config, step, lambda batch: place(batch, on, 8), state


def test_a_step_that_leaps_leaves_parameters_and_moments_bit_for_bit(seen, batch_of):
    _, step, placed, state = seen
    before = leaves_of(state)
    state, bad = step(state, placed(leaping(batch_of(1))))
    after = leaves_of(state)
    state, good = step(state, placed(batch_of(1)))
    assert np.isfinite([bad["loss"], bad["gradient_norm"]]).all()
    assert float(bad["gradient_norm"]) > 20 * float(good["gradient_norm"])
    assert [int(one["skipped"]) for one in (bad, good)] == [1, 0]
    changed = {path for path, leaf in before.items() if leaf.tobytes() != after[path].tobytes()}
    assert changed == {"step", "guard/skipped", "guard/in_a_row"}


def test_a_run_that_resumes_is_judged_by_the_statistic_that_was_saved(seen, batch_of):
    config, step, placed, state = seen
    with Checkpoints(config) as checkpoints:
        checkpoints.save(SEEN, state, Position())
    with Checkpoints(config) as checkpoints:
        resumed = checkpoints.restore(SEEN).state
    assert int(step(resumed, placed(leaping(batch_of(1))))[1]["skipped"])


def test_what_another_config_saw_is_no_measure_however_often_it_is_restored(seen, batch_of):
    """At each start and each return, until the run has saved under its new config."""
    config, step, placed, state = seen
    other = replace(config, optimizer=replace(config.optimizer, peak_lr=0.005))
    with Checkpoints(config) as checkpoints:
        checkpoints.save(SEEN, state, Position())
    saved = leaves_of(state)
    for asked, begins in ((other, True), (other, True), (replace(config, accumulation=2), False)):
        with Checkpoints(asked) as checkpoints:
            start = checkpoints.restore(SEEN)
        resumed = start.state
        assert start.differs == (("accepted: optimizer.peak_lr was 0.01, is 0.005",) * begins)
        changed = {path for path, leaf in leaves_of(resumed).items() if (leaf != saved[path]).any()}
        assert all(path.startswith("guard/") for path in changed)
        assert int(resumed.guard.seen) == (0 if begins else SEEN)
    with Checkpoints(other) as checkpoints:
        resumed = checkpoints.restore(SEEN).state
        resumed, scalars = step(resumed, placed(leaping(batch_of(1))))
        assert not int(scalars["skipped"]), "it has nothing to judge by"
        checkpoints.save(SEEN + 1, resumed, Position())
    with Checkpoints(other) as checkpoints:
        assert int(checkpoints.restore(SEEN + 1).state.guard.seen) == 1
