"""Damaged checkpoints: named, passed over, refused; and the command that looks at them."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from gemma_train.checkpoints.folder import CheckpointFolder
from gemma_train.commands import checkpoint, command_line
from gemma_train.errors import FaultyHardware
from tests.commands.processes import (
    LAST,
    assert_same_arrays,
    checkpoints_of,
    flip,
    saved_arrays,
)


def newest(folder: Path) -> Path:
    return folder / "checkpoints" / str(max(checkpoints_of(folder)))


@pytest.mark.parametrize("how", ["flipped", "truncated", "missing", "unsealed"])
def test_a_damaged_checkpoint_is_named_and_passed_over(copied, finished_run, gemma_train, how):
    folder, config = copied
    files = [file for file in sorted(newest(folder).rglob("*")) if file.is_file()]
    file = max(files, key=lambda file: file.stat().st_size)
    match how:
        case "flipped":
            flip(file)
        case "truncated":
            file.write_bytes(file.read_bytes()[:-1])
        case "missing":
            file.unlink()
        case "unsealed":
            file = newest(folder)
            next(file.glob("seal-*")).unlink()
    done = gemma_train("train", config)
    assert done.returncode == 0, done.stderr
    assert f"checkpoint 9 is damaged ({str(file)!r}" in done.stdout
    assert "going on from step 6" in done.stdout
    assert (folder / "checkpoints" / "9.damaged").exists()
    assert_same_arrays(saved_arrays(folder, LAST), saved_arrays(finished_run[0], LAST))


def test_a_run_whose_checkpoints_are_all_damaged_never_begins_anew(copied, refused, one_device):
    folder, config = copied
    for step in (6, 9):
        flip(folder / "checkpoints" / str(step) / "_CHECKPOINT_METADATA")
    for _ in range(2):
        told = refused("train", config)
        assert "holds no whole checkpoint" in told and "_CHECKPOINT_METADATA" in told
    assert checkpoints_of(folder) == [6, 9], "nothing was moved"


def test_readers_pass_over_a_damaged_checkpoint_too(copied, gemma_train):
    folder, _ = copied
    file = newest(folder) / "state" / "manifest.ocdbt"
    flip(file)
    done = gemma_train("evaluate", str(folder))
    assert done.returncode == 0
    assert "after 6 steps" in done.stdout
    assert str(file) in done.stderr
    assert file.exists(), "who looks moves nothing"


def test_a_state_that_is_not_the_one_saved_is_faulty_hardware(
    copied, capsys, one_device, monkeypatch
):
    """As if memory or a file system changed it between the files, which are whole, and the chip."""
    from gemma_train.training import checkpoint as training

    real = training.from_paths

    def flipped(leaves, like):
        table = np.array(leaves["model/embedding/table"])
        table.reshape(-1).view(np.uint32)[7] ^= 1
        place = leaves["model/embedding/table"].sharding
        return real({**leaves, "model/embedding/table": jax.device_put(table, place)}, like)

    monkeypatch.setattr(training, "from_paths", flipped)
    assert command_line.run(["train", copied[1]]) == FaultyHardware.exit_code
    assert "checkpoints/9 was restored as" in capsys.readouterr().err


def test_the_command_lists_verifies_and_prunes(copied, capsys, refused):
    folder, _ = copied
    shutil.copytree(folder / "checkpoints" / "6", folder / "checkpoints" / "3")
    assert command_line.run(["checkpoint", "verify", str(folder)]) == 0
    assert capsys.readouterr().out.count("verified") == 3
    flip(folder / "checkpoints" / "9" / "state" / "manifest.ocdbt")
    assert command_line.run(["checkpoint", "list", str(folder)]) == 0
    assert capsys.readouterr().out.count("sealed") == 3, "sizes are as they were"
    assert command_line.run(["checkpoint", "verify", str(folder)]) == 1
    told = capsys.readouterr().out
    assert told.count("verified") == 2 and "manifest.ocdbt" in told
    assert command_line.run(["checkpoint", "prune", str(folder)]) == 1
    assert checkpoints_of(folder) == [6, 9], "the last that is whole stays, and so does the damaged"
    assert "checkpoint 3 removed" in capsys.readouterr().out
    assert "holds no config.py" in refused("checkpoint", "list", str(folder / "nowhere"))


@pytest.mark.parametrize("verb", ["list", "verify"])
@pytest.mark.parametrize("ahead_of", ["damage", "contents"])
def test_one_that_the_run_removes_meanwhile_is_passed_over(
    copied, capsys, monkeypatch, verb, ahead_of
):
    folder, _ = copied
    real = getattr(checkpoint, ahead_of)

    def removed(place, *given):
        if place.name == "6":
            CheckpointFolder(str(folder)).remove(6)
        return real(place, *given)

    monkeypatch.setattr(checkpoint, ahead_of, removed)
    assert command_line.run(["checkpoint", verb, str(folder)]) == 0
    told = capsys.readouterr().out
    assert "damaged" not in told
    assert [line.split()[0] for line in told.splitlines()] == ["step", "9"]
