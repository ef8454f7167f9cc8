"""The guard: which steps are bad, and that they change nothing but its own counts."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma_train.errors import UserError
from gemma_train.guard import Guard, GuardConfig, judged

CONFIG = GuardConfig(spike_deviations=8.0)
NAN, INF = float("nan"), float("inf")


def seen(losses, norms, config=CONFIG) -> tuple[list[bool], Guard]:
    """Which of the steps were good, and the guard after the last."""
    judge = jax.jit(lambda guard, loss, norm: judged(guard, config, loss, norm))
    guard, found = Guard.begun(), []
    for loss, norm in zip(losses, norms, strict=True):
        good, guard = judge(guard, jnp.float32(loss), jnp.float32(norm))
        found.append(bool(good))
    return found, guard


def quiet(steps: int) -> tuple[list[float], list[float]]:
    random = np.random.default_rng(0)
    return (
        list(3.0 + 0.05 * random.standard_normal(steps)),
        list(np.exp(0.2 * random.standard_normal(steps))),
    )


@pytest.mark.parametrize(("loss", "norm"), [(NAN, 1.0), (INF, 1.0), (3.0, NAN), (3.0, INF)])
@pytest.mark.parametrize("before", [0, 3, 150])
def test_what_is_not_finite_is_bad_from_the_first_step_on(loss, norm, before):
    losses, norms = quiet(before)
    good, guard = seen([*losses, loss, loss, 3.0], [*norms, norm, norm, 1.0])
    assert good == [True] * before + [False, False, True]
    assert (int(guard.skipped), int(guard.in_a_row), int(guard.seen)) == (2, 0, before + 1)
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(guard))


@pytest.mark.parametrize(("loss", "norm"), [(4.0, 1.0), (3.0, 20.0)])
def test_a_leap_is_bad_once_there_is_something_to_compare_with(loss, norm):
    losses, norms = quiet(150)
    good, _ = seen([*losses, loss], [*norms, norm])
    assert good == [True] * 150 + [False]
    good, _ = seen([*losses[:50], loss], [*norms[:50], norm])
    assert all(good), "too little was seen"
    good, _ = seen([*losses, loss], [*norms, norm], replace(CONFIG, spike_deviations=0.0))
    assert all(good), "spikes are let through"


def test_a_fall_is_never_a_spike_nor_is_a_slow_rise():
    losses, norms = quiet(150)
    good, _ = seen([*losses, 0.5], [*norms, 0.001])
    assert all(good)
    rising = [3.0 + 0.01 * step for step in range(300)]
    assert all(seen(rising, [1.0] * 300)[0])


def test_a_bad_step_moves_no_mean():
    losses, norms = quiet(150)
    _, before = seen(losses, norms)
    _, after = seen([*losses, 9.0], [*norms, 1.0])
    for name, leaf in vars(before).items():
        if name not in ("skipped", "in_a_row"):
            assert leaf == getattr(after, name), name


def test_mean_and_variance_are_those_of_the_values_while_few():
    losses, norms = quiet(60)
    _, guard = seen(losses, norms)
    np.testing.assert_allclose(guard.loss_mean, np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(guard.loss_variance, np.var(losses), rtol=1e-3)
    np.testing.assert_allclose(guard.norm_variance, np.var(np.log(norms)), rtol=1e-3)


def test_a_step_without_a_token_is_no_measure():
    losses, norms = quiet(150)
    good, guard = seen([*losses, 0.0, 0.0, 4.0], [*norms, 0.0, 0.0, 20.0])
    assert good == [True] * 152 + [False]
    assert int(guard.seen) == 150


@pytest.mark.parametrize(
    "fields", [{"spike_deviations": -1.0}, {"bad_steps": 0}, {"returns": -1}], ids=str
)
def test_a_number_that_means_nothing_names_the_field(fields):
    with pytest.raises(UserError, match=f"guard.{next(iter(fields))}"):
        GuardConfig(**fields)


def test_one_that_begins_anew_has_seen_nothing_and_still_counts_what_was_skipped():
    """For the schedule goes by the good steps of the whole run."""
    losses, norms = quiet(30)
    _, guard = seen([*losses, NAN, NAN], [*norms, 1.0, 1.0])
    anew = guard.anew()
    assert (int(anew.skipped), int(anew.seen), int(anew.in_a_row)) == (2, 0, 0)
