"""The picture says what it shows, and is the same for the same results."""

import math
import re

import pytest

from gemma_train.config import EXAMPLE
from gemma_train.metrics.recorder import Recorder
from gemma_train.sweeps import AtEnd, OverTokens, Run, Sweep, plot
from gemma_train.sweeps.results import Result, groups


def found(rows, baseline=None):
    """Groups of done runs from (labels, loss, folder)."""
    return groups(
        [
            Result(
                run=Run(
                    name=f"run-{number}",
                    config=EXAMPLE.__class__(**{**vars(EXAMPLE), "folder": str(folder)}),
                    labels=labels,
                ),
                state="done",
                metric=loss,
            )
            for number, (labels, loss, folder) in enumerate(rows)
        ],
        baseline,
    )


def svg(groups, *plots, **more):
    runs = tuple(one.run for group in groups for one in group.results)
    files = plot.drawn(Sweep(folder="x", runs=runs, plots=plots, **more), groups)
    assert files == plot.drawn(Sweep(folder="x", runs=runs, plots=plots, **more), groups)
    assert files["results.png"].startswith(b"\x89PNG")
    return files["results.svg"].decode()


def test_lines_by_the_other_factors_over_numbers():
    rows = [
        ({"rate": rate, "loss": loss, "seed": seed}, 3 + seed / 10 + rate, "x")
        for rate in (1e-3, 1e-2, 1e-1)
        for loss in ("plain", "z")
        for seed in (0, 1, 2)
    ]
    text = svg(found([*rows, ({}, 2.0, "x")]), AtEnd(x="rate"), metric_label="bits a byte")
    for words in ("loss=plain", "loss=z", "run-18", "bits a byte", ">rate<", "1 to 3 runs"):
        assert words in text
    for tick in ("0.001", "0.01", "0.1"):
        assert f">{tick}<" in text


def test_differences_from_the_baseline_are_drawn_with_it_at_zero():
    rows = [
        ({"rate": rate, "seed": seed}, seed + offset + rate, "x")
        for rate, offset in ((1.0, 0.0), (2.0, 0.5), (3.0, 0.25))
        for seed in (0, 1)
    ]
    groups = found(rows, "rate=2")
    text = svg(groups, AtEnd(x="rate", against_baseline=True), baseline="rate=2")
    assert "against rate=2" in text
    assert all(f">{rate}<" in text for rate in (1, 2, 3))


def test_texts_stand_side_by_side_and_a_loss_that_is_not_finite_is_left_out():
    losses = {"plain": 3.0, "z": 4.0, "wild": math.nan}
    rows = [({"loss": name}, loss, "x") for name, loss in losses.items()]
    text = svg(found(rows), AtEnd(x="loss"))
    assert all(f">{name}<" in text for name in losses)


@pytest.fixture
def curves(tmp_path):
    """Two groups of two seeds with three evaluations each."""
    rows = []
    for kind in ("a", "b"):
        for seed in (0, 1):
            folder = tmp_path / f"{kind}{seed}"
            with Recorder(folder, 0, tensorboard=False) as recorder:
                for step in (1, 2, 3):
                    recorder.record(step, {"loss": 5 / step + seed / 9}, kind="evaluation")
            rows.append(({"kind": kind, "seed": seed}, 2.0, folder))
    return found(rows)


def test_curves_over_tokens_with_bands(curves):
    text = svg(curves, OverTokens(label="nats"), AtEnd(x="kind"))
    for words in ("kind=a", "kind=b", "nats", "tokens", "means of 2 runs"):
        assert words in text
    assert len(re.findall("FillBetweenPolyCollection|PolyCollection", text)) == 2


def test_curves_may_begin_later_and_may_be_missing(curves, tmp_path):
    late = OverTokens(after_tokens=2.5 * EXAMPLE.step_tokens)
    assert svg(curves, late) != svg(curves, OverTokens())
    assert "kind=c" in svg(found([({"kind": "c"}, 1.0, tmp_path)]), OverTokens())
