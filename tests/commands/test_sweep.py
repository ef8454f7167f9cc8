"""Small real sweeps by the command line: whole, killed and resumed, partly failing, refused."""

import csv
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from gemma_train.checkpoints.folder import CheckpointFolder
from gemma_train.commands import command_line
from tests.commands.conftest import command, environment

SWEEP = """
from dataclasses import replace

from gemma_train.config import load
from gemma_train.sweeps import *

base = replace(load({config!r}), steps=8)
broken = replace(base, data=replace(base.data, held_out=("/nowhere",)))
rates = choices("optimizer.peak_lr", 1e-3, 1e-2, label="rate")
runs = runs_of(base, product(rates, seeds(2)))
sweep = Sweep(
    folder={folder!r},
    runs={runs},
    baseline="rate=0.001",
    plots=(AtEnd(x="rate"), OverTokens()),
)
"""


@pytest.fixture(scope="module")
def write_sweep(tmp_path_factory, write_config):
    """Writes a sweep file over the small run and returns its path."""
    config = write_config(tmp_path_factory.mktemp("base") / "run")

    def write(folder: Path, runs: str = "runs") -> str:
        file = folder.with_suffix(".py")
        file.write_text(SWEEP.format(config=config, folder=str(folder), runs=runs))
        return str(file)

    return write


@pytest.fixture(scope="module")
def whole(tmp_path_factory, write_sweep, gemma_train) -> tuple[Path, str, str]:
    """(folder, file, words) of a sweep of four runs that nothing disturbed."""
    folder = tmp_path_factory.mktemp("sweeps") / "whole"
    file = write_sweep(folder)
    done = gemma_train("sweep", file)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, file, done.stdout


def table(folder: Path) -> dict[str, dict[str, str]]:
    """results.csv by name, without the times."""
    with (folder / "results.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    for row in rows.values():
        del row["minutes"]
    return rows


def test_a_sweep_leaves_tables_and_a_picture(whole):
    folder, _, words = whole
    assert "4 runs, 0 done, 4 to do (8.19k tokens)" in words
    assert "[4/4] rate=0.01/seed=1: held-out loss (nats a token) " in words
    rows = table(folder)
    assert list(rows) == [f"rate={rate}/seed={seed}" for rate in ("0.001", "0.01") for seed in "01"]
    assert {row["state"] for row in rows.values()} == {"done"}
    assert len({row["held_out_loss"] for row in rows.values()}) == 4
    page = (folder / "results.md").read_text()
    assert "| rate=0.01 | 2 |" in page
    assert "## Against rate=0.001, seed by seed" in page
    picture = (folder / "results.svg").read_text()
    assert "rate=0.01" in picture and "held-out loss" in picture
    assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")
    assert "held-out loss" in (folder / "rate=0.01" / "seed=1" / "log.txt").read_text()


def test_a_finished_sweep_starts_nothing(whole, capsys):
    folder, file, _ = whole
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*/*")}
    tables = table(folder)
    assert command_line.run(["sweep", file]) == 0
    assert "4 runs, 4 done, 0 to do (0 tokens)" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/*/*")} == before
    assert table(folder) == tables


def test_a_sweep_killed_in_the_middle_of_a_run_goes_on_to_the_same_table(
    tmp_path, write_sweep, whole, gemma_train
):
    folder = tmp_path / "killed"
    words = ("sweep", write_sweep(folder), "--only", "rate=0.01/*")
    sweep = subprocess.Popen(command(*words), env=environment(), stdout=subprocess.DEVNULL)
    run = folder / "rate=0.01" / "seed=1"
    while not CheckpointFolder(str(run)).steps:
        assert sweep.poll() is None
        time.sleep(0.002)
    for process in (folder / ".lock").read_text().split():  # the sweep, then its run
        os.kill(int(process), signal.SIGKILL)
    assert sweep.wait() == -signal.SIGKILL
    rows = table(folder)
    assert rows["rate=0.01/seed=0"]["state"] == "done"
    assert rows["rate=0.01/seed=1"]["held_out_loss"] == ""
    again = gemma_train(*words)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "2 runs, 1 done, 1 to do, 1 of them begun" in again.stdout
    assert "going on from step" in (run / "log.txt").read_text()
    for name in ("rate=0.01/seed=0", "rate=0.01/seed=1"):
        assert table(folder)[name] == table(whole[0])[name]
    assert table(folder)["rate=0.001/seed=0"]["state"] == "to do"


def test_ctrl_c_saves_the_running_run(tmp_path, write_sweep):
    folder = tmp_path / "stopped"
    slow = "runs_of(replace(base, steps=5000), product(rates, seeds(2)))"
    file = write_sweep(folder, slow)
    sweep = subprocess.Popen(command("sweep", file), env=environment(), stdout=subprocess.PIPE)
    metrics = folder / "rate=0.001" / "seed=0" / "metrics.jsonl"
    while sweep.poll() is None and not (metrics.exists() and metrics.read_bytes()):
        time.sleep(0.002)
    sweep.send_signal(signal.SIGINT)
    words = sweep.communicate(timeout=60)[0].decode()
    assert sweep.returncode == 130, words
    assert "the same command goes on" in words
    assert "saved" in (metrics.parent / "log.txt").read_text()
    assert [path.name for path in folder.glob("*/*")] == ["seed=0"]


def test_a_failing_run_is_survived_and_ends_with_code_1(write_sweep, whole, gemma_train):
    folder, *_ = whole
    before = table(folder)
    broken = '(Run(name="broken", config=broken),)'
    done = gemma_train("sweep", write_sweep(folder, f"chain({broken}, runs)"))
    assert done.returncode == 1
    assert "1 of 5 runs failed:\n  broken: exit code 2: gemma-train: " in done.stdout
    assert "/nowhere" in done.stdout
    assert str(folder / "broken" / "log.txt") in done.stdout
    assert table(folder).pop("broken")["state"] == "failed"
    assert {name: row for name, row in table(folder).items() if name != "broken"} == before


def test_a_dry_run_lists_and_does_nothing(tmp_path, write_sweep, capsys):
    file = write_sweep(tmp_path / "dry")
    assert command_line.run(["sweep", file, "--only", "*/seed=1", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [
        "  rate=0.001/seed=1  to do   2.05k tokens  rate=0.001 seed=1",
        "  rate=0.01/seed=1   to do   2.05k tokens  rate=0.01 seed=1",
    ]
    assert not (tmp_path / "dry").exists()


def test_a_sweep_of_another_name(tmp_path, write_sweep, capsys):
    file = Path(write_sweep(tmp_path / "two"))
    file.write_text(f"{file.read_text()}\npod = replace(sweep, folder={str(tmp_path / 'pod')!r})\n")
    for words, told in (((), "two: 4 runs"), (("--name", "pod"), "pod: 4 runs")):
        assert command_line.run(["sweep", str(file), *words, "--dry-run"]) == 0
        assert told in capsys.readouterr().out
    assert command_line.run(["sweep", str(file), "--name", "pods"]) == 2
    line = capsys.readouterr().err.strip()
    assert line == (
        f"gemma-train: name is 'pods': sweep {str(file)!r} does not end in `pods = Sweep(...)`; "
        "it has sweep, pod"
    )
    assert command_line.run(["sweep", str(tmp_path / "none.py"), "--name", "pod"]) == 2
    assert f"sweep {str(tmp_path / 'none.py')!r} does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("runs", "words", "told"),
    [
        ("()", (), "runs are none"),
        ("runs + runs", (), "two runs are named 'rate=0.001/seed=0'"),
        ("runs_of(base, zipped(rates, seeds(3)))", (), "zipped has factors of [2, 3] variants"),
        ("runs_of(base, choices('stepps', 1))", (), "did you mean 'steps'?"),
        ("runs", ("--only", "other"), "only is 'other': none of 4 runs matches"),
        ("runs", ("--onyl", "other"), "--onyl"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(tmp_path, write_sweep, capsys, runs, words, told):
    assert command_line.run(["sweep", write_sweep(tmp_path / "wrong", runs), *words]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("gemma-train: ") and "\n" not in line
    assert told in line
    assert not (tmp_path / "wrong").exists()


def test_a_run_of_another_config_is_named_before_anything_starts(write_sweep, whole, capsys):
    folder, *_ = whole
    file = write_sweep(folder, "runs_of(replace(base, steps=9), product(rates, seeds(2)))")
    assert command_line.run(["sweep", file]) == 2
    line = capsys.readouterr().err.strip()
    assert "run 'rate=0.001/seed=0'" in line and "steps was 8, is 9" in line
    assert "\n" not in line


def test_a_file_that_leaves_no_sweep(tmp_path, capsys):
    (tmp_path / "none.py").write_text("x = 1")
    assert command_line.run(["sweep", str(tmp_path / "none.py")]) == 2
    assert "does not end in `sweep = Sweep(...)`" in capsys.readouterr().err
