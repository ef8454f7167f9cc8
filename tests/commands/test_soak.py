"""Kills and damage by the hundred (`make soak`), and a few of them in every run of the tests."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from gemma_train.config import load
from gemma_train.leaves import by_path
from gemma_train.mesh import make_mesh
from gemma_train.training.checkpoint import Checkpoints
from tests.commands import soak
from tests.commands.conftest import ROOT, environment
from tests.commands.processes import checkpoints_of

# Short, and in full.
KILLS = [3, pytest.param(100, marks=pytest.mark.slow)]
DAMAGES = [(12, 4), pytest.param((200, 50), marks=pytest.mark.slow)]


@pytest.mark.parametrize("kills", KILLS)
def test_killed_at_random_moments_every_run_ends_as_the_undisturbed_one(
    tmp_path, write_config, finished_run, kills
):
    folder = tmp_path / "run"
    seed = time.time_ns() % 10**6
    words = [write_config(folder), folder, finished_run[0], kills, seed]
    program = [sys.executable, "-m", "tests.commands.soak", *map(str, words)]
    done = subprocess.run(program, env=environment(), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    assert done.returncode == 0, f"seed {seed}: {done.stdout}"
    assert f"{kills} kills" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "before", "code", "told"),
    [
        ("going on from step 1,003\nstep 1,004/12", 1003, -9, ""),
        ("gone on\n", 3, -9, ""),
        ("step 1/12 · loss 7", 0, -9, ""),
        ("step 1/12 · loss 7", 3, -9, "was lost"),
        ("going on from step 3\n", 6, -9, "it said [3]"),
        ("going on from step 3\n", 0, -9, "it said [3]"),
        ("done", 12, 0, "was lost"),
        ("run is finished: all 12 steps are done", 12, 0, ""),
    ],
)
def test_a_life_that_begins_over_the_head_of_a_checkpoint_is_found(words, before, code, told):
    found = soak.fault(words, before, code)
    assert told in found and bool(told) == bool(found)


def test_a_save_under_way_is_told_from_a_removal_and_from_what_an_earlier_life_left(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "6").mkdir(parents=True)
    mark = checkpoints / "3.unfinished-0"
    mark.touch()
    assert not soak.is_saving(tmp_path, mark.stat().st_mtime)
    mark = mark.rename(checkpoints / "9.unfinished-0")
    assert soak.is_saving(tmp_path, mark.stat().st_mtime)
    assert not soak.is_saving(tmp_path, mark.stat().st_mtime + 1)


def test_a_run_whose_checkpoint_is_gone_after_a_kill_is_found(tmp_path):
    checkpoint = tmp_path / "checkpoints" / "3"

    def kill():
        checkpoint.rmdir() if checkpoint.exists() else checkpoint.mkdir(parents=True)
        return -signal.SIGKILL, ""

    assert soak.one_run(tmp_path, kill) == (2, "checkpoint 3 is gone")


@pytest.mark.parametrize("damages", DAMAGES, ids=str)
def test_no_flipped_bit_and_no_truncation_is_ever_restored(
    tmp_path, finished_run, write_config, damages
):
    """Over all files of the newest checkpoint: passed over, or harmless and the very same state."""
    flips, truncations = damages
    whole, steps = finished_run[0], checkpoints_of(finished_run[0])
    random, copy = np.random.default_rng(time.time_ns()), tmp_path / "copy"
    config = load(write_config(copy))
    names = sorted(
        str(file.relative_to(whole))
        for file in (whole / "checkpoints" / str(steps[-1])).rglob("*")
        if file.is_file() and file.stat().st_size
    )
    with jax.set_mesh(make_mesh(config.mesh, jax.devices()[:1])):
        shutil.copytree(whole, copy)
        expected = {step: restored(config, step)[1] for step in steps}
        outcomes = {"passed over": 0, "harmless": 0}
        for number in range(flips + truncations):
            name = names[number % len(names)]
            shutil.rmtree(copy)
            shutil.copytree(whole, copy)
            what = damage(copy / name, random, flips=number < flips)
            heard: list[str] = []
            with Checkpoints(config, heard.append) as checkpoints:
                step = checkpoints.newest_whole()
            assert step is not None, what
            if step == steps[-1]:
                outcomes["harmless"] += 1
                assert Path(name).name.startswith("seal-"), f"{what} was not found"
            else:
                outcomes["passed over"] += 1
                assert step == steps[-2] and str(steps[-1]) in heard[0], what
            found = restored(config, step)[1]
            assert found == expected[step], what
    print(outcomes)
    assert outcomes["passed over"] > 0.8 * (flips + truncations)


def restored(config, step: int) -> tuple[int, dict[str, bytes]]:
    """(next row, every leaf's bytes) of a checkpoint."""
    with Checkpoints(config, print) as checkpoints:
        start = checkpoints.restore(step)
    return start.position.next_row, {
        path: np.asarray(leaf).tobytes() for path, leaf in by_path(start.state).items()
    }


def damage(file: Path, random: np.random.Generator, *, flips: bool) -> str:
    """Flip one bit of a file, or cut it; says what was done."""
    content = bytearray(file.read_bytes())
    if flips:
        bit = int(random.integers(8 * len(content)))
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)
        return f"bit {bit} of {file.name}"
    size = int(random.integers(len(content)))
    file.write_bytes(content[:size])
    return f"{file.name} cut to {size} bytes"


def test_what_orbax_alone_makes_of_a_flipped_bit(tmp_path):
    """Why all this: it restores it without a word, or the seals are no longer needed."""
    from orbax.checkpoint import v1 as ocp

    state, silent = {"a": jax.numpy.arange(4096.0)}, 0
    ocp.save_checkpointables(tmp_path / "1", {"state": state})
    file = max((tmp_path / "1").rglob("*"), key=lambda f: f.stat().st_size if f.is_file() else 0)
    content = file.read_bytes()
    for byte in range(200, len(content) - 200, len(content) // 8):
        flipped = bytearray(content)
        flipped[byte] ^= 1
        file.write_bytes(flipped)
        try:
            found = ocp.load_checkpointables(tmp_path / "1", {"state": state})["state"]
        except Exception:
            continue
        silent += not np.array_equal(found["a"], state["a"])
    assert silent > 0
