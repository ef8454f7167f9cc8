"""`gemma-train evaluate`: the newest checkpoint on the run's own held-out rows, or on others."""

import json
import re

import pytest

from gemma_train.commands import command_line


@pytest.fixture
def told(capsys):
    """Runs evaluate with these words; the loss and the tokens that it tells."""

    def run(*words) -> tuple[float, int]:
        assert command_line.run(["evaluate", *map(str, words)]) == 0
        found = re.search(r"held-out loss (\S+) .* over (\S+) tokens", capsys.readouterr().out)
        assert found
        return float(found[1]), int(found[2].replace(",", ""))

    return run


def test_it_finds_the_loss_that_the_run_ended_with(finished_run, told):
    run = finished_run[0]
    summary = json.loads((run / "summary.json").read_text())
    loss, tokens = told(run, "--rows", 8)
    assert loss == pytest.approx(summary["held_out_loss"], abs=1e-4)
    assert tokens <= 8 * 64
    assert told(run)[1] > tokens


def test_other_datasets_in_place_of_the_runs_own(finished_run, corpus, told):
    run = finished_run[0]
    own = told(run, "--held-out", f"{corpus}/held_out")
    assert own == told(run)
    train = told(run, "--held-out", f"{corpus}/train")
    both = told(run, *("--held-out", f"{corpus}/held_out"), *("--held-out", f"{corpus}/train"))
    assert both[1] == own[1] + train[1]
    assert both[0] * both[1] == pytest.approx(own[0] * own[1] + train[0] * train[1], rel=1e-4)


def test_a_dataset_that_is_not_there_is_a_line(finished_run, capsys):
    words = ["evaluate", str(finished_run[0]), "--held-out", "nowhere"]
    assert command_line.run(words) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("gemma-train: ") and "nowhere" in line and "\n" not in line
