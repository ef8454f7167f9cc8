"""Changes that make a step fit: allowed, enough, the weakest of their kind, cheapest first."""

import shlex

import pytest

from gemma_train.commands.command_line import _from_flags
from gemma_train.config import RunConfig, changed
from gemma_train.planning.fitting import changes_that_fit
from gemma_train.planning.memory import activation_bytes, state_bytes


@pytest.fixture
def peak_of():
    """The modelled peak: for it the scale to the compiler's is one."""

    def peak(config: RunConfig) -> int:
        return state_bytes(config).total + activation_bytes(config).peak

    return peak


def test_two_changes_are_named_that_a_command_line_takes_and_that_fit(pod_run, peak_of):
    config = pod_run(data__batch_rows=256)
    usable = int(0.8 * peak_of(config))
    changes = changes_that_fit(config, peak_of(config), usable)
    assert len(changes) == 2
    for change in changes:
        changed = _from_flags(RunConfig, shlex.split(change.flags), "plan", config)
        assert changed != config
        assert peak_of(changed) == pytest.approx(change.peak_bytes, abs=2)
        assert change.peak_bytes <= usable


def test_of_a_refusal_that_tells_too_little_the_count_is_believed(pod_run, peak_of):
    """The compiler says what a step needs at least: half of it is no reason to ask for less."""
    config = pod_run(data__batch_rows=256)
    usable = int(0.8 * peak_of(config))
    told = changes_that_fit(config, peak_of(config) // 2, usable // 2)
    counted = changes_that_fit(config, peak_of(config), usable // 2)
    assert told == counted


def test_the_weakest_change_of_a_kind_is_taken(pod_run, peak_of):
    config = pod_run(data__batch_rows=256)
    change = changes_that_fit(config, peak_of(config), int(0.8 * peak_of(config)))[0]
    assert change.flags == "--accumulation 2"


def test_fewest_flops_come_first(pod_run, peak_of):
    config = pod_run(compute__remat="none")
    costs = [
        change.extra_flops
        for share in (0.95, 0.8, 0.6)
        for change in changes_that_fit(config, peak_of(config), int(share * peak_of(config)))
    ]
    assert costs
    assert all(cost == 0 for cost in costs[:2])


def test_remat_is_proposed_at_its_price_where_nothing_else_is_left(pod_run, peak_of):
    config = pod_run(
        compute__remat="none",
        loss__chunk=128,
        data__batch_rows=16,
        mesh__replica=1,
        mesh__data=16,
        mesh__slices=1,
    )
    changes = changes_that_fit(config, peak_of(config), int(0.7 * peak_of(config)))
    assert [change.flags for change in changes] == ["--compute.remat full"]
    assert 0.15 < changes[0].extra_flops < 0.35


def test_two_changes_go_together_where_one_is_not_enough(pod_run, peak_of):
    config = pod_run(data__batch_rows=256, compute__remat="none")
    smallest = peak_of(pod_run(data__batch_rows=256, compute__remat="none", accumulation=8))
    changes = changes_that_fit(config, peak_of(config), smallest // 2)
    assert changes
    assert all(change.flags.count("--") >= 2 for change in changes)


def test_nothing_is_proposed_where_the_state_alone_is_too_large(pod_run, peak_of):
    config = pod_run()
    assert changes_that_fit(config, peak_of(config), state_bytes(config).total // 8) == []


def test_the_scale_of_the_compilers_peak_carries_over(pod_run, peak_of):
    """Twice the modelled activations: the change is weighed at twice as well."""
    config = pod_run(data__batch_rows=256)
    state = state_bytes(config).total
    doubled = state + 2 * (peak_of(config) - state)
    usable = int(0.8 * doubled)
    change = changes_that_fit(config, doubled, usable)[0]
    other = changed(config, {"accumulation": 2})
    expected = state_bytes(other).total + 2 * activation_bytes(other).peak
    assert change.peak_bytes == pytest.approx(expected, abs=2)
