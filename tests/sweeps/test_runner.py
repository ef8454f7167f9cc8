"""The runner with commands that end in every way."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.console import Console

from gemma_train.config import EXAMPLE, Distillation, Online, OptimizerConfig, Stored, record
from gemma_train.errors import UserError
from gemma_train.run_files import RECORD, TEACHER
from gemma_train.sweeps import AtEnd, Run, Sweep
from gemma_train.sweeps.lock import alone
from gemma_train.sweeps.runner import commands_of, run_all, state_of
from gemma_train.teachers.identity import Identity
from tests.sweeps.conftest import started


@pytest.fixture
def make(tmp_path):
    """Runs a sweep of some runs; returns its failures and what it said."""

    def run(*runs: Run, terminal: bool = False, **more):
        sweep = Sweep(folder=str(tmp_path / "sweep"), runs=runs, **more)
        words = io.StringIO()
        console = Console(file=words, force_terminal=terminal, width=120)
        return run_all(sweep, sweep.placed, console), words.getvalue()

    return run


def test_runs_are_made_in_order_and_tables_kept(make, fake, tmp_path):
    failures, words = make(fake("a", 1.5, k=1), fake("b", 2.5, k=2), plots=(AtEnd(x="k"),))
    assert failures == []
    lines = [line for line in words.splitlines() if "held-out" in line]
    assert lines[0].startswith("[1/2] a: held-out loss (nats a token) 1.5000, ")
    assert lines[1].startswith("[2/2] b: held-out loss (nats a token) 2.5000, ")
    folder = tmp_path / "sweep"
    assert {file.name for file in folder.iterdir() if file.is_file()} == {
        ".lock",
        "groups.csv",
        "results.csv",
        "results.md",
        "results.png",
        "results.svg",
    }
    assert (folder / "a" / "log.txt").read_text() == "a word\n"


def test_on_a_terminal_the_last_words_of_the_run_are_shown(make, fake):
    _, words = make(fake("a", 1.5), terminal=True)
    assert "1.5000" in words


@pytest.mark.parametrize(
    ("what", "how", "line"),
    [
        ("fail", "exit code 1", "out of luck"),
        ("abort", "killed by SIGABRT", "a word"),
        ("nothing", "ended without its summary.json", "a word"),
    ],
)
def test_a_failing_run_is_survived_and_told(make, fake, tmp_path, what, how, line):
    failures, words = make(fake("a", what), fake("b", 2.0))
    (failure,) = failures
    assert (failure.run.name, failure.how, failure.line) == ("a", how, line)
    assert str(tmp_path / "sweep" / "a" / "log.txt") in failure.told
    assert f"[1/2] a: {how}" in words
    table = (tmp_path / "sweep" / "results.md").read_text()
    assert "| failed |" in table
    assert "| done |" in table
    assert make(fake("a", 1.0), fake("b", 2.0))[0] == []
    assert started(tmp_path / "sweep", "a") == 2
    assert started(tmp_path / "sweep", "b") == 1


def test_a_program_that_is_not_there_is_a_failure(make, fake):
    failures, _ = make(replace(fake("a"), command=("/no/such/program",)), fake("b"))
    assert "cannot be run: No such file" in failures[0].told


def test_what_is_done_is_not_begun_again(make, fake, tmp_path):
    make(fake("a", 1.0), fake("b", 2.0))
    files = [tmp_path / "sweep" / name / "summary.json" for name in ("a", "b")]
    before = [file.stat().st_mtime_ns for file in files]
    failures, words = make(fake("a", 9.0), fake("b", 9.0))
    assert (failures, words) == ([], "")
    assert [file.stat().st_mtime_ns for file in files] == before
    assert started(tmp_path / "sweep", "a") == started(tmp_path / "sweep", "b") == 1


def test_a_metric_that_no_run_has_is_told_when_the_first_one_ends(make, fake):
    _, words = make(fake("a", 1.0), metric="held_out_los")
    assert "no 'held_out_los' among its figures (held_out_loss, flops)" in words


def test_another_metric_is_compared(make, fake, tmp_path):
    make(fake("a", 1.0), metric="flops", metric_label="work")
    assert "| work |" in (tmp_path / "sweep" / "results.md").read_text()
    assert ",7.0," in (tmp_path / "sweep" / "results.csv").read_text()


def test_a_record_is_handed_to_the_trainer_by_default():
    run = Run(name="a", config=replace(EXAMPLE, folder="runs/x/a"))
    assert commands_of(run) == [
        [sys.executable, "-m", "gemma_train", "train", "runs/x/a/config.py"]
    ]


def test_a_store_that_a_run_learns_from_is_made_ahead_of_it():
    loss = Distillation(teacher=Stored(folder="targets", weights="runs/teacher"))
    run = Run(name="a", config=replace(EXAMPLE, folder="runs/x/a", loss=loss))
    words = [sys.executable, "-m", "gemma_train"]
    assert commands_of(run) == [
        [*words, "teacher", "runs/x/a/config.py"],
        [*words, "train", "runs/x/a/config.py"],
    ]


def begun(folder: Path, config) -> None:
    """A run's folder with a checkpoint in it."""
    (folder / "checkpoints" / "3").mkdir(parents=True)
    (folder / RECORD).write_text(record(config))


def test_a_folder_made_by_another_config_is_refused_before_anything_starts(make, fake, tmp_path):
    run = fake("b", 1.0)
    other = replace(EXAMPLE, optimizer=OptimizerConfig(peak_lr=0.5), folder="elsewhere")
    begun(tmp_path / "sweep" / "b", other)
    with pytest.raises(UserError, match=r"run 'b'.* \(optimizer.peak_lr was 0.5, is 0.0003\)"):
        make(fake("a", 1.0), run)
    assert started(tmp_path / "sweep", "a") == 0


def test_losses_over_other_rows_are_not_put_side_by_side(tmp_path):
    folder = tmp_path / "run"
    run = Run(name="run", config=replace(EXAMPLE, folder=str(folder)))
    assert state_of(run) == "to do"
    fewer = replace(EXAMPLE, evaluation=replace(EXAMPLE.evaluation, rows=8))
    begun(folder, fewer)
    assert state_of(run) == "begun"
    (folder / "summary.json").write_text("{}")
    with pytest.raises(UserError, match="evaluation.rows was 8, is 64"):
        state_of(run)


def test_students_of_two_teachers_of_one_name_are_not_put_side_by_side(make, fake, tmp_path):
    """A teacher that trained on, or was made again, in the middle of a sweep."""
    loss = Distillation(teacher=Online(weights="runs/teacher"))
    runs = [fake(name, 1.0) for name in "ab"]
    runs = [replace(run, config=replace(run.config, loss=loss)) for run in runs]
    make(*runs)
    for run, sha256 in zip(runs, ("1" * 64, "1" * 64), strict=True):
        write_teacher(tmp_path / "sweep" / run.name, sha256)
    make(*runs)
    write_teacher(tmp_path / "sweep" / "b", "2" * 64)
    with pytest.raises(UserError, match="'a' and 'b' learned from different teachers, both called"):
        make(*runs)


def write_teacher(folder: Path, sha256: str) -> None:
    who = Identity(folder="runs/teacher", step=9, parameters=1, sha256=sha256)
    (folder / TEACHER).write_text(json.dumps(asdict(who)))


def test_a_config_mended_before_anything_was_saved_is_taken(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / RECORD).write_text(record(replace(EXAMPLE, steps=1)))
    assert state_of(Run(name="run", config=replace(EXAMPLE, folder=str(folder)))) == "to do"


def test_a_summary_that_is_no_json_is_named(make, fake, tmp_path):
    make(fake("a", 1.0))
    (tmp_path / "sweep" / "a" / "summary.json").write_text("{half")
    with pytest.raises(UserError, match=r"a/summary\.json' is not JSON"):
        make(fake("a", 1.0))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop_reaches_the_child_once_and_ends_the_sweep(make, fake, tmp_path, number):
    ready = tmp_path / "sweep" / "a" / "ready"

    def ask() -> None:
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    asking = threading.Thread(target=ask)
    asking.start()
    with pytest.raises(KeyboardInterrupt):
        make(fake("a", "wait"), fake("b", 1.0))
    asking.join()
    assert (tmp_path / "sweep" / "a" / "log.txt").read_text() == "a word\nsaved\n"
    assert started(tmp_path / "sweep", "b") == 0
    assert "| failed |" not in (tmp_path / "sweep" / "results.md").read_text()
    assert make(fake("a", 1.0), fake("b", 1.0))[0] == []


def test_two_sweeps_do_not_work_in_one_folder(make, fake, tmp_path):
    with (
        alone(str(tmp_path / "sweep")),
        pytest.raises(UserError, match=f"worked on by process {os.getpid()}"),
    ):
        make(fake("a", 1.0))
    assert make(fake("a", 1.0))[0] == []


def test_a_child_that_outlives_its_sweep_keeps_the_folder(make, fake, tmp_path):
    """kill -9 of the sweep leaves the run at work: a second one beside it would spoil it."""
    folder, run = tmp_path / "sweep", fake("a", "wait")
    program = (
        "import sys; from rich.console import Console\n"
        "from gemma_train.config import EXAMPLE\n"
        "from gemma_train.sweeps import Run, Sweep\n"
        "from gemma_train.sweeps.runner import run_all\n"
        "run = Run(name='a', config=EXAMPLE, command=tuple(sys.argv[2:]))\n"
        "sweep = Sweep(folder=sys.argv[1], runs=(run,))\n"
        "run_all(sweep, sweep.placed, Console())\n"
    )
    sweep = subprocess.Popen([sys.executable, "-c", program, str(folder), *run.command])
    while not (folder / "a" / "ready").exists():
        assert sweep.poll() is None
        time.sleep(0.01)
    sweep.kill()
    sweep.wait()
    child = int((folder / "a" / "started").read_text())
    with pytest.raises(UserError, match=f"and {child}"):
        make(fake("a", 1.0))
    os.kill(child, signal.SIGKILL)
    wait_for_end(folder)
    assert make(fake("a", 1.0))[0] == []
    assert json.loads((folder / "a" / "summary.json").read_text())["held_out_loss"] == 1.0


def wait_for_end(folder: Path) -> None:
    """Until the lock is free again."""
    for _ in range(500):
        try:
            with alone(str(folder)):
                return
        except UserError:
            time.sleep(0.01)
    raise AssertionError("the lock outlives its processes")
