"""Intervals of means and shares against values worked out by hand."""

import math

import pytest

from gemma_train.metrics.interval import Mean, Share

# The 97.5 % points of Student's t with one and with two degrees of freedom have closed forms.
T_1, T_2 = math.tan(0.475 * math.pi), 0.95 / math.sqrt(2 * 0.975 * 0.025)


def test_the_mean_and_its_interval_are_students():
    mean = Mean.of([3.0, 4.0, 5.0])
    assert (mean.count, mean.mean, mean.deviation) == (3, 4.0, 1.0)
    assert mean.low == pytest.approx(4 - T_2 / math.sqrt(3), rel=1e-12)
    assert mean.high == pytest.approx(4 + T_2 / math.sqrt(3), rel=1e-12)
    two = Mean.of([1.0, 2.0])
    assert two.high == pytest.approx(1.5 + T_1 * math.sqrt(0.5 / 2), rel=1e-12)


def test_a_single_value_has_no_interval_and_equal_ones_an_empty_one():
    assert Mean.of([2.0]) == Mean(count=1, mean=2.0, deviation=None, low=None, high=None)
    assert Mean.of([2.0, 2.0]) == Mean(count=2, mean=2.0, deviation=0.0, low=2.0, high=2.0)


def test_a_loss_that_is_not_finite_is_shown_as_such():
    mean = Mean.of([2.0, math.nan])
    assert math.isnan(mean.mean)
    assert mean.low is not None and math.isnan(mean.low)


def test_a_constant_moves_the_mean_and_its_interval():
    moved, expected = Mean.of([3.0, 4.0, 5.0]).plus(2.0), Mean.of([5.0, 6.0, 7.0])
    assert (moved.count, moved.mean, moved.deviation) == (3, 6.0, 1.0)
    assert moved.low == pytest.approx(expected.low) and moved.high == pytest.approx(expected.high)
    assert Mean.of([2.0]).plus(1.0) == Mean.of([3.0])


def test_a_share_has_wilsons_interval_and_none_right_is_not_certainly_none():
    z = 1.959963984540054  # the 97.5 % point of the normal distribution
    none = Share.of([False] * 10)
    assert (none.count, none.share, none.low) == (10, 0.0, 0.0)
    assert none.high == pytest.approx(z**2 / (10 + z**2), rel=1e-9)
    half = Share.of([True, False])
    assert half.share == 0.5 and half.high - 0.5 == pytest.approx(0.5 - half.low)
