"""The quickstart in full: what it learns of images, and what that costs it in text."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.conftest import ROOT

LEAST_RIGHT = 0.5  # of the held-out digits; a guess has one in ten
MOST_WORSE = 0.05  # nats a token of text, against as much of the same text alone


@pytest.fixture
def gemma_train(tmp_path):
    """Runs a command in an empty folder with this project's configs; what it printed."""
    for name in ("configs", "data_recipes"):
        (tmp_path / name).symlink_to(ROOT / name)

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "gemma_train", *words]
        own = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        environment = {**os.environ, **own}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.slow
def test_it_names_digits_and_its_text_is_no_worse(gemma_train, tmp_path: Path):
    gemma_train("prepare", "data_recipes/quickstart.py")
    gemma_train("embed", "data_recipes/quickstart_images.py")
    gemma_train("prepare", "data_recipes/quickstart_images.py")
    text = {}
    for name in ("quickstart", "quickstart_text"):
        gemma_train("train", f"configs/{name}.py")
        words = ("--held-out", "data/quickstart/held_out", "--rows", "256")
        told = re.search(r"held-out loss (\S+)", gemma_train("evaluate", f"runs/{name}", *words))
        assert told
        text[name] = float(told[1])
    summary = json.loads((tmp_path / "runs/quickstart/summary.json").read_text())
    assert summary["captions_right"] >= LEAST_RIGHT
    assert text["quickstart"] <= text["quickstart_text"] + MOST_WORSE
