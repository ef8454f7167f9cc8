"""The curves: what thinning and smoothing keep, and drawings that fit any page."""

import numpy as np
import pytest

from gemma_train.metrics.curves import COLOURS, Curve, Series, draw, smooth, thin


def ramp(points, name="loss", **style):
    steps = np.arange(1.0, points + 1)
    return Curve(name=name, train=Series(step=steps, value=1 / steps), **style)


def test_thinning_keeps_the_first_the_last_and_the_extremes():
    value = np.random.default_rng(0).normal(size=100_000)
    value[31_415], value[27_182] = 50, -50
    kept = thin(value)
    assert len(kept) <= 2000
    assert {0, 27_182, 31_415, 99_999} <= set(kept)
    assert (np.diff(kept) > 0).all()


@pytest.mark.parametrize("points", [1, 10, 2000, 2001])
def test_thinning_leaves_short_runs_whole_and_never_fails(points):
    kept = thin(np.zeros(points))
    assert kept[0] == 0 and kept[-1] == points - 1
    assert len(kept) == points or points > 2000


def test_a_smoothed_line_stays_a_line_and_loses_the_noise():
    line = np.linspace(5, 3, 5000)
    assert np.abs(smooth(line) - line).max() < 0.03
    noise = np.random.default_rng(0).normal(size=5000)
    assert smooth(line + noise)[100:].std() < line.std() + 0.1
    assert np.abs(smooth(noise)[1000:]).max() < 0.35


def test_smoothing_begins_at_the_first_value():
    assert smooth(np.array([7.0, 1, 1]))[0] == 7


@pytest.mark.parametrize("points", [1, 10, 1000])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_a_drawing_takes_every_colour_from_the_page(points, logarithmic):
    svg = draw(ramp(points, logarithmic=logarithmic, level=0.5))
    assert svg.startswith("<svg viewBox=") and svg.rstrip().endswith("</svg>")
    assert "var(--train)" in svg
    assert not any(sentinel in svg for sentinel in COLOURS)


def test_two_drawings_share_no_id():
    def ids(name):
        words = draw(ramp(50, name=name)).split('id="')[1:]
        return {word.split('"')[0] for word in words if word[0] in "pm" and word[1] != "a"}

    assert ids("loss") and not ids("loss") & ids("gradient_norm")
