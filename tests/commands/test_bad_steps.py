"""Rows that spoil steps: skipped, gone back from and passed over, and at last given up on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from gemma_train.checkpoints.folder import CheckpointFolder
from gemma_train.commands import command_line
from gemma_train.conversion import orbax_arrays
from gemma_train.leaves import by_path
from gemma_train.training import loop
from tests.commands.processes import (
    LAST,
    assert_same_arrays,
    checkpoints_of,
    flip,
    saved_arrays,
    steps_of,
)

ROWS = 4  # of a step


class Poisoned:
    """A stream in which the tokens of some rows weigh NaN, as a damaged chip would see them."""

    def __init__(self, stream, start_row: int, poisoned: range):
        self._stream, self._row, self._poisoned = stream, start_row, poisoned
        self.close, self.damaged_rows = stream.close, 0

    def __next__(self):
        batch, row = next(self._stream), self._row
        self._row += ROWS
        seen.append(row)
        if row in self._poisoned:
            batch.weights_bt[...] = np.nan
        return batch

    def __enter__(self):
        self._stream.__enter__()
        return self

    def __exit__(self, *error):
        self._stream.__exit__(*error)


seen: list[int] = []


@pytest.fixture
def train(monkeypatch, one_device, write_config, tmp_path):
    """Runs a config whose rows are poisoned in a range; its folder and its exit code."""
    seen.clear()

    def run(poisoned: range, *words: str, name: str = "run") -> tuple[Path, int]:
        real = loop.batches
        with monkeypatch.context() as patched:
            patched.setattr(
                loop,
                "batches",
                lambda data, *, start_row, **how: Poisoned(
                    real(data, start_row=start_row, **how), start_row, poisoned
                ),
            )
            config = write_config(tmp_path / name, steps=14)
            return tmp_path / name, command_line.run(["train", config, *words])

    return run


def position_of(folder: Path, step: int) -> dict[str, int]:
    return orbax_arrays.metadata(CheckpointFolder(str(folder)).checkpoint(step))["position"]


def events(folder: Path) -> list[str]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["what"] for line in lines if line["kind"] == "event"]


def test_one_bad_step_is_skipped_and_its_rows_are_told(train, capsys):
    folder, code = train(range(20, 24))
    assert code == 0
    steps = steps_of(folder)
    assert [number for number, line in steps.items() if line["skipped"]] == [6]
    assert (steps[6]["first_row"], steps[6]["loss"]) == (20, "nan")
    assert (
        "step 6 was skipped: loss nan, gradient norm nan, rows 20 to 23" in capsys.readouterr().out
    )
    assert [steps[number]["first_row"] for number in range(1, 15)] == [*range(0, 56, 4)]
    assert np.isfinite([steps[n]["loss"] for n in steps if n != 6]).all()
    assert 6 not in checkpoints_of(folder), "a good state is to be there to go back to"
    assert checkpoints_of(folder)[-1] == 14
    assert not events(folder)


def test_many_in_a_row_go_back_to_the_checkpoint_and_on_with_later_rows(train):
    """Bad from row 20 on: steps 6, 7 and 8. The save that 6 owes makes it look at each of them."""
    folder, code = train(range(20, 32), "--guard.bad-steps", "3")
    assert code == 0
    assert seen[:8] == [*range(0, 32, 4)], "to step 8"
    assert seen[8:] == [*range(32, 32 + 11 * 4, 4)], "again from step 4 on, with rows from 32 on"
    assert events(folder) == ["came back from step 8, to go on with row 32 (return 1 of 3)"]
    steps = steps_of(folder)
    assert list(steps) == [*range(1, 15)]
    assert [steps[n]["first_row"] for n in (3, 4, 14)] == [8, 32, 72]
    assert not any(line["skipped"] for line in steps.values())
    state = saved_arrays(folder, 14)
    assert int(state["step"]) == 14 and int(state["guard/skipped"]) == 0


def test_a_run_that_went_back_resumes_where_it_was_in_the_data(train, monkeypatch):
    words = ("--guard.bad-steps", "3")
    folder, _ = train(range(20, 32), *words)
    for step in checkpoints_of(folder)[-1:]:
        (folder / "checkpoints" / str(step)).rename(folder / "checkpoints" / f"{step}.damaged")
    (folder / "summary.json").unlink()
    seen.clear()
    folder, code = train(range(20, 32), *words)
    assert code == 0
    assert seen == [68, 72], "steps 13 and 14"


def test_without_a_checkpoint_it_begins_again_with_later_rows(train):
    folder, code = train(range(5), "--guard.bad-steps", "2", "--checkpoint-every-steps", "9")
    assert code == 0
    assert seen[:3] == [0, 4, 8] and seen[3:5] == [12, 16]
    assert list(steps_of(folder)) == [*range(1, 15)]
    assert events(folder) == ["came back from step 3, to go on with row 12 (return 1 of 3)"]


ENDS = {"stopped": 0, "killed": 130}  # codes of the life that ends where the run first goes back


@pytest.fixture
def end_at_the_first_return(monkeypatch):
    """Lets the life that goes back first end there: by a stop in that very step, or by a kill."""

    def arm(how: str) -> None:
        going_back, back = loop.Loop._go_back, []

        def once(run):
            first = not back
            back.append(how)
            run._stopping |= first and how == "stopped"
            going_back(run)
            if first and how == "killed":
                raise KeyboardInterrupt

        monkeypatch.setattr(loop.Loop, "_go_back", once)

    return arm


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize(("poisoned", "every"), [(range(20, 32), 3), (range(12), 9)], ids=str)
def test_a_run_that_ends_at_its_return_goes_on_as_if_it_had_not(
    train, end_at_the_first_return, how, poisoned, every
):
    words = ("--guard.bad-steps", "3", "--checkpoint-every-steps", str(every))
    whole, code = train(poisoned, *words, name="whole")
    assert code == 0
    rows = seen.copy()
    seen.clear()
    end_at_the_first_return(how)
    folder, code = train(poisoned, *words)
    assert code == ENDS[how]
    assert 0 not in checkpoints_of(folder), "nothing is saved of a state before the first step"
    assert train(poisoned, *words) == (folder, 0)
    assert seen == rows
    assert_same_arrays(saved_arrays(folder, 14), saved_arrays(whole, 14))
    assert position_of(folder, 14) == {"next_row": rows[-1] + ROWS, "returns": 1}


@pytest.mark.parametrize("how", ENDS)
def test_returns_are_counted_over_lives(train, end_at_the_first_return, how, capsys):
    end_at_the_first_return(how)
    words = ("--guard.bad-steps", "3", "--guard.returns", "2")
    folder, code = train(range(20, 10_000), *words)
    assert code == ENDS[how]
    for _ in range(2):
        assert train(range(20, 10_000), *words) == (folder, 3)
        assert "after 2 returns to a checkpoint" in capsys.readouterr().err
    assert [what[-14:] for what in events(folder)] == ["return 1 of 2)", "return 2 of 2)"]
    assert checkpoints_of(folder) == [3]


def test_a_run_of_converted_weights_goes_back_to_them_in_a_later_life_too(
    train, finished_run, monkeypatch
):
    """Checkpoint 3 is damaged while that life runs: what is left is 0, of weights alone."""
    words = ("--guard.bad-steps", "3", "--checkpoints-kept", "9")
    folder, _ = train(range(0), *words)
    for step in (6, 9, 12, 14):
        shutil.rmtree(folder / "checkpoints" / str(step))
    (folder / "summary.json").unlink()
    made = folder.with_name("made")
    assert command_line.run(["convert", str(finished_run[0]), str(made), "--format", "run"]) == 0
    (made / "checkpoints" / "0").rename(folder / "checkpoints" / "0")
    going_back, found = loop.Loop._go_back, {}

    def damaged(run):
        flip(folder / "checkpoints" / "3" / "_CHECKPOINT_METADATA")
        going_back(run)
        leaves = by_path(run.state.model)
        found.update({f"model/{name}": np.array(leaf) for name, leaf in leaves.items()})

    monkeypatch.setattr(loop.Loop, "_go_back", damaged)
    assert train(range(20, 32), *words) == (folder, 0)
    saved = saved_arrays(finished_run[0], LAST)
    assert_same_arrays(found, {name: saved[name] for name in found})


def test_a_note_of_a_return_that_is_damaged_is_one_line(train, end_at_the_first_return, refused):
    end_at_the_first_return("stopped")
    words = ("--guard.bad-steps", "3")
    folder, _ = train(range(20, 32), *words)
    note = folder / "checkpoints" / "return.json"
    note.write_text(note.read_text().replace('"returns": 1', '"returns": -1'))
    told = refused("train", str(folder.with_suffix(".py")), *words)
    assert f"{str(note)!r} is garbled" in told and "remove it to go on" in told


def test_bad_steps_that_do_not_end_end_the_run_with_a_code_of_its_own(train, capsys):
    folder, code = train(range(20, 10_000), "--guard.bad-steps", "3", "--guard.returns", "2")
    assert code == 3
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "3 bad steps in a row" in told and "after 2 returns to a checkpoint" in told
    assert checkpoints_of(folder) == [3], "the good one is there"
    assert not (folder / "summary.json").exists()
    assert [what.partition("(")[2] for what in events(folder)] == [
        "return 1 of 2)",
        "return 2 of 2)",
    ]
