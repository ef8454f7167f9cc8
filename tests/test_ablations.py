"""The sweeps of configs/ablations/: what they hold, and that a laptop's stay a laptop's."""

import functools
import os
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.target_error import drawn, power_law, stored
from gemma_train.config import load, record
from gemma_train.losses.distillation import Distillation
from gemma_train.planning.slices import Slices
from gemma_train.samplers import Counts, Priority, TopK
from gemma_train.sweeps import Sweep
from gemma_train.teachers.online import teacher_model

ROOT = Path(__file__).parents[1]
FILES = sorted(ROOT.glob("configs/ablations/*.py"))
LAPTOP_TOKENS = 6_000_000  # about twenty minutes at the laptop's size


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@functools.cache
def sweeps(file: Path) -> dict[str, Sweep]:
    """The sweeps of a file by their variables."""
    scope = runpy.run_path(str(file))
    return {name: value for name, value in scope.items() if isinstance(value, Sweep)}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_holds_a_sweep_and_perhaps_a_pods(file):
    found = sweeps(file)
    assert "sweep" in found and set(found) <= {"sweep", "pod"}
    for sweep in found.values():
        names = {run.name for run in sweep.runs}
        assert len(names) == len(sweep.runs)
        of_seeds = Counter(run.config.seed for run in sweep.runs)
        assert set(of_seeds.values()) == {len({run.group for run in sweep.runs})}


def test_no_two_sweeps_share_a_folder():
    folders = [sweep.folder for file in FILES for sweep in sweeps(file).values()]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("kind", [TopK, Counts, Priority])
def test_the_pods_samplers_take_the_same_bytes(kind):
    """Of the teacher that their number is said to be measured on: p ~ rank^-1.3, ids at random."""
    runs = sweeps(ROOT / "configs/ablations/samplers.py")["pod"].runs
    found = [run.config.loss.sampler for run in runs if isinstance(run.config.loss, Distillation)]
    [sampler] = {one for one in found if isinstance(one, kind)}
    [lesson] = power_law(1.3, vocabulary=262_144, rows=1, length=64)
    size = stored(lesson, sampler, drawn(lesson, sampler, 0, draws=1))[1]
    assert abs(size - 80) < 5


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_laptops_sweep_is_a_matter_of_minutes(file):
    sweep = sweeps(file)["sweep"]
    assert sum(run.tokens for run in sweep.runs) < LAPTOP_TOKENS
    assert {run.config.mesh.topology for run in sweep.runs} == {None}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_pods_runs_have_their_chips_and_their_teachers(file, tmp_path):
    for run in sweeps(file)["pod"].placed if "pod" in sweeps(file) else ():
        config, mesh = run.config, run.config.mesh
        Slices.named(mesh.topology, mesh.slices).check(mesh)
        if isinstance(config.loss, Distillation):
            model = teacher_model(config)
            assert model is not None and model.vocabulary == config.model.vocabulary
        (tmp_path / "config.py").write_text(record(config))
        assert load(str(tmp_path / "config.py")) == config


def test_reading_them_touches_no_device():
    program = "import runpy, sys; [runpy.run_path(file) for file in sys.argv[1:]]"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, FILES)],
        env=os.environ | {"JAX_PLATFORMS": "none_here", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
