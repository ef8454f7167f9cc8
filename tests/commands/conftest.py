"""A small prepared corpus, a run over it, and the command line in a process of its own."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from gemma_train.commands import command_line

ROOT = Path(__file__).parents[2]

CONFIG = """
from gemma_train.config import *

config = RunConfig(
    folder={folder!r},
    model=GemmaConfig(
        vocabulary=600, width=32, layers=3, query_heads=2, key_value_heads=1, head_dimension=16,
        hidden=64, context=64, pattern=("local", "global"), window=8, query_key_norm=True,
        post_norms=True,
    ),
    data=DataConfig(
        tokenizer={data!r} + "/tokenizer.model",
        train=(TokenSource(path={data!r} + "/train"),),
        held_out=({data!r} + "/held_out",),
        sequence_length=64,
        batch_rows=4,
    ),
    steps={steps},
    optimizer=OptimizerConfig(peak_lr=1e-3, warmup_steps=4),
    compute=ComputeConfig(dtype="float32"),
    evaluation=EvaluationConfig(every_steps=7, rows=8),
    checkpoint_every_steps=3,
    tensorboard=False,
)
"""

RECIPE = """
from gemma_train.data.recipe import Recipe, TextSource
from gemma_train.tokenizer.training import TokenizerConfig

recipe = Recipe(
    name="small",
    folder={data!r},
    tokenizer=TokenizerConfig(path={data!r} + "/tokenizer.model", vocabulary=600),
    sources=(
        TextSource(name="json", files=({files!r},), licence="PSF-2.0", held_out_fraction=0.3),
    ),
)
"""

DISTILLED = """
from dataclasses import replace
from gemma_train.config import Distillation, Online, Priority, Stored, TopK, load

run = load({run!r})
config = replace(
    run,
    folder={folder!r},
    loss=Distillation(
        teacher=Stored(folder={store!r}, weights={weights!r}, dtype="float32"),
        sampler={sampler},
        chunk=64,
    ),
)
"""
SHARDS = ("--shard-tokens", "256")  # 4 rows of 64 tokens: 12 shards of the run's 48 rows


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "gemma_train", *words]


def environment(devices: int = 1) -> dict[str, str]:
    """One thread of work a process keeps the kills spread out and the machine usable."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def gemma_train() -> Callable[..., subprocess.CompletedProcess]:
    """Runs `gemma-train WORDS` in a process of its own, to its end."""

    def run(*words: str, devices: int = 1) -> subprocess.CompletedProcess:
        return subprocess.run(
            command(*words), env=environment(devices), capture_output=True, text=True, timeout=300
        )

    return run


@pytest.fixture
def refused(capsys):
    """Runs a command line in this process that must fail, and returns its one line."""

    def run(*words: str | Path) -> str:
        assert command_line.run([str(word) for word in words]) == 2
        told = capsys.readouterr().err.strip()
        assert told.startswith("gemma-train: ")
        assert "\n" not in told
        return told

    return run


@pytest.fixture
def one_device(monkeypatch):
    """Runs in this process take the first device, as on a laptop."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: devices)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, gemma_train) -> str:
    """The folder of a prepared corpus: Python's json package."""
    folder = tmp_path_factory.mktemp("corpus")
    files = str(Path(sysconfig.get_path("stdlib")) / "[jcl]*" / "*.py")
    recipe = folder / "recipe.py"
    recipe.write_text(RECIPE.format(data=str(folder / "data"), files=files))
    done = gemma_train("prepare", str(recipe))
    assert done.returncode == 0, done.stderr
    return str(folder / "data")


@pytest.fixture(scope="session")
def write_config(corpus) -> Callable[..., str]:
    """Writes the config of a small run in `folder` and returns its path."""

    def write(folder: Path, steps: int = 12) -> str:
        file = folder.with_suffix(".py")
        file.write_text(CONFIG.format(folder=str(folder), data=corpus, steps=steps))
        return str(file)

    return write


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, write_config, gemma_train) -> tuple[Path, str]:
    """(folder, config file) of a run of twelve steps that nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    config = write_config(folder)
    done = gemma_train("train", config)
    assert done.returncode == 0, done.stderr
    assert "unigram entropy" in done.stdout
    return folder, config


@pytest.fixture
def copied(tmp_path, finished_run, write_config) -> tuple[Path, str]:
    """(folder, config) of a run that has done eleven of its steps, with checkpoints 6 and 9."""

    folder = tmp_path / "copied"
    shutil.copytree(finished_run[0], folder)
    shutil.rmtree(folder / "checkpoints" / "12")
    (folder / "summary.json").unlink()
    config = write_config(folder)
    record = (folder / "config.py").read_text()
    (folder / "config.py").write_text(record.replace(str(finished_run[0]), str(folder)))
    return folder, config


@pytest.fixture
def write_distilled(tmp_path, finished_run):
    """Writes the config of a student of the finished run, and returns its path."""
    folder, run = finished_run

    def write(name: str = "student", *, store: Path, sampler="TopK(candidates=16)", weights=None):
        file = tmp_path / f"{name}.py"
        text = DISTILLED.format(
            run=run,
            folder=str(tmp_path / name),
            store=str(store),
            weights=str(weights or folder),
            sampler=sampler,
        )
        file.write_text(text)
        return str(file)

    return write


@pytest.fixture(scope="session")
def whole_store(tmp_path_factory, finished_run, gemma_train) -> tuple[Path, str]:
    """(store, config) of a pass that nothing disturbed."""
    folder, run = finished_run
    place = tmp_path_factory.mktemp("teachers")
    config = place / "whole.py"
    config.write_text(
        DISTILLED.format(
            run=run,
            folder=str(place / "student"),
            store=str(place / "whole"),
            weights=str(folder),
            sampler="TopK(candidates=16)",
        )
    )
    done = gemma_train("teacher", str(config), *SHARDS)
    assert done.returncode == 0, done.stderr
    assert "48 rows to write" in done.stdout
    assert "B a token" in done.stdout
    return place / "whole", str(config)
