"""Runs of sweeps whose command is a small script: what a run leaves, without the training."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gemma_train.config import EXAMPLE
from gemma_train.sweeps import Run

# WHAT RECORD: counts that it was called, says a word, and ends as it is told.
SCRIPT = """
import json, os, pathlib, signal, sys, time

what, folder = sys.argv[1], pathlib.Path(sys.argv[2]).parent
with (folder / "started").open("a") as file:
    print(os.getpid(), file=file)
print("a word", flush=True)
if what == "fail":
    sys.exit("out of luck")
if what == "abort":
    os.abort()
if what == "wait":
    signal.signal(signal.SIGINT, lambda *_: sys.exit("saved"))
    (folder / "ready").touch()
    time.sleep(60)
if what == "nothing":
    sys.exit()
(folder / "summary.json").write_text(json.dumps({"held_out_loss": float(what), "flops": 7}))
"""


@pytest.fixture
def fake(tmp_path) -> Callable[..., Run]:
    """Makes a run that ends with the loss `what`, or by "fail", "abort", "wait" or "nothing"."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def make(name: str, what: float | str = 1.0, **labels) -> Run:
        command = (sys.executable, str(script), str(what))
        return Run(name=name, config=EXAMPLE, labels=labels, command=command)

    return make


def started(folder: Path, name: str) -> int:
    """How many times a run of `fake` was begun."""
    file = folder / name / "started"
    return len(file.read_text().splitlines()) if file.exists() else 0
