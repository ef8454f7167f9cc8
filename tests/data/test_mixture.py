import numpy as np
import pytest

from gemma_train.data.mixture import Schedule, quotas


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((1,), [1]),
        ((0.7, 0.25, 0.05), [14, 5, 1]),
        ((2, 1, 1), [2, 1, 1]),
        ((1, 1, 1), [1, 1, 1]),
        ((1, 1.99999), None),
        ((3, 0, 1), [3, 0, 1]),
        ((0.1 + 0.2, 0.7), None),
    ],
)
def test_quotas_are_exact_where_a_period_allows_and_near_elsewhere(weights, expected):
    found = np.array(quotas(weights))
    if expected:
        assert found.tolist() == expected
    np.testing.assert_allclose(found / found.sum(), np.array(weights) / sum(weights), atol=1e-5)


def test_a_tiny_weight_still_gets_a_row():
    assert quotas((1, 1e-9, 0.5))[1] == 1


@pytest.mark.parametrize("components", [1, 2, 3, 7, 40, 140])
def test_every_prefix_is_within_one_row_of_its_share(components):
    random = np.random.default_rng(components)
    quota = quotas(random.integers(1, 50, components) / 7)
    schedule = Schedule(quota)
    period = min(sum(quota), 20_000)
    chosen = np.array([schedule[row][0] for row in range(period)])
    counts = np.cumsum(chosen[:, None] == np.arange(components), axis=0)
    shares = np.arange(1, period + 1)[:, None] * (np.array(quota) / sum(quota))
    assert np.abs(counts - shares).max() < 1 + 1e-6


def test_each_component_is_read_in_order_without_gaps():
    schedule = Schedule(quotas((0.7, 0.25, 0.05)))
    for component in range(3):
        picked = [row for chosen, row in (schedule[i] for i in range(200)) if chosen == component]
        assert picked == list(range(len(picked)))


def test_a_position_far_away_is_found_at_once():
    schedule = Schedule([14, 5, 1])
    component, row = schedule[20 * 10**12 + 3]
    assert schedule[3][0] == component
    assert row == (14, 5, 1)[component] * 10**12 + schedule[3][1]


@pytest.mark.parametrize("rows", [0, 1, 19, 20, 57, 10**15])
def test_the_places_of_a_component_are_those_where_its_turn_comes(rows):
    schedule = Schedule(quotas((0.7, 0.25, 0.05)))
    chosen = np.array([schedule[row][0] for row in range(min(rows, 200))])
    for component in range(3):
        found = schedule.places(component, rows, 7)
        assert found.tolist() == np.flatnonzero(chosen == component)[:7].tolist()
