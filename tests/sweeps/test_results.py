"""Statistics and tables against values worked out by hand."""

import csv
import io
import math

import pytest

from gemma_train.config import EXAMPLE
from gemma_train.metrics.recorder import Recorder
from gemma_train.sweeps import Run, Sweep, tables
from gemma_train.sweeps.results import Result, groups, result

LOSSES = {("a", 0): 3.0, ("a", 1): 4.0, ("a", 2): 5.0, ("b", 0): 2.5, ("b", 1): 3.0, ("b", 2): 5.0}
# The 97.5 % point of Student's t with two degrees of freedom has a closed form.
T_2 = 0.95 / math.sqrt(2 * 0.975 * 0.025)


def run(kind, seed):
    labels = {"kind": kind, "seed": seed}
    return Run(name=f"kind={kind}/seed={seed}", config=EXAMPLE, labels=labels)


RESULTS = [
    Result(run=run(*key), state="done", metric=loss, training_loss=loss + 1, minutes=1.5)
    for key, loss in LOSSES.items()
]
SWEEP = Sweep(folder="runs/mine", runs=tuple(one.run for one in RESULTS), baseline="kind=a")


def test_differences_are_taken_seed_by_seed():
    first, second = groups(RESULTS, "kind=a")
    assert first.difference is None
    difference = second.difference
    assert difference is not None
    # -0.5, -1 and 0: pairs differ by half of what the groups themselves spread over.
    assert (difference.count, difference.mean, difference.deviation) == (3, -0.5, 0.5)
    assert difference.high == pytest.approx(-0.5 + T_2 * 0.5 / math.sqrt(3), rel=1e-12)
    unpaired = groups([RESULTS[0], RESULTS[4]], "kind=a")
    assert [group.difference for group in unpaired] == [None, None]


def test_runs_that_are_not_done_count_for_nothing():
    left = Result(run=run("b", 3), state="failed")
    assert groups([*RESULTS, left], None) == groups(RESULTS, None)
    assert groups([left], None) == []


def test_the_csv_files_hold_everything_to_the_last_bit():
    exact = [Result(run=one.run, state="done", metric=1 / 3) for one in RESULTS[:1]]
    (row,) = csv.DictReader(io.StringIO(tables.runs_csv(SWEEP, exact)))
    assert float(row["held_out_loss"]) == 1 / 3
    assert (row["name"], row["kind"], row["seed"]) == ("kind=a/seed=0", "a", "0")
    assert (row["steps"], row["tokens"]) == ("100000", str(100_000 * EXAMPLE.step_tokens))
    assert (row["training_loss"], row["state"]) == ("", "done")
    found = groups(RESULTS, "kind=a")
    rows = list(csv.DictReader(io.StringIO(tables.groups_csv(SWEEP, found))))
    assert [row["kind"] for row in rows] == ["a", "b"]
    assert float(rows[1]["difference_mean"]) == -0.5
    assert rows[0]["difference_mean"] == ""
    assert float(rows[0]["high"]) == found[0].mean.high


def test_the_page_shows_seeds_differences_and_runs():
    page = tables.page(SWEEP, RESULTS, groups(RESULTS, "kind=a"))
    assert "6 of 6 runs done" in page
    assert "| kind=a | 3 | 4.0000 | 1.0000 | 1.5159 to 6.4841 |" in page
    assert "## Against kind=a, seed by seed" in page
    assert "| kind=b | 3 | -0.5000 | -1.7421 to +0.7421 |" in page
    assert "| kind=b/seed=1 | b | 1 | 100,000 |" in page
    none = tables.page(SWEEP, [Result(run=RESULTS[0].run, state="to do")], [])
    assert "No run is finished yet." in none


def test_a_result_is_read_from_the_runs_folder(tmp_path):
    with Recorder(tmp_path, 0, tensorboard=False) as recorder:
        recorder.record(1, {"loss": 5.0, "first_step_seconds": 90.0})
        recorder.record(2, {"loss": 4.0, "seconds_per_step": 30.0})
        recorder.record(2, {"loss": 4.5}, kind="evaluation")
    (tmp_path / "summary.json").write_text('{"held_out_loss": 4.5, "gap": 0.25}')
    here = Run(name="one", config=EXAMPLE.__class__(**{**vars(EXAMPLE), "folder": str(tmp_path)}))
    found = result(here, "done", "gap")
    assert (found.metric, found.training_loss, found.minutes) == (0.25, 4.0, 2.0)
    assert result(here, "begun", "gap").metric is None
    assert result(here, "done", "unheard").metric is None
