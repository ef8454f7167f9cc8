"""Storage that fails, a second writer, other configs and versions, lost and faulty replicas."""

import contextlib
import errno
import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from gemma_train.commands import command_line
from tests.commands.conftest import environment
from tests.commands.processes import (
    LAST,
    assert_same_arrays,
    checkpoints_of,
    ended,
    saved_arrays,
    start_stepping,
    steps_of,
)


@pytest.mark.parametrize("where", ["begin", "end"])
def test_a_save_that_fails_is_told_of_tried_again_and_training_goes_on(
    tmp_path, write_config, finished_run, one_device, monkeypatch, capsys, where
):
    from gemma_train.training import checkpoint

    tries, real = [], checkpoint.seal

    def full(place, *given):
        tries.append(int(place.name))
        if len(tries) <= 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(place))
        return real(place, *given)

    if where == "end":
        monkeypatch.setattr(checkpoint, "seal", full)
    else:
        saves = checkpoint.ocp.save_checkpointables_async

        def begin(place, *given, **named):
            full(place) if len(tries) < 2 else None
            return saves(place, *given, **named)

        monkeypatch.setattr(checkpoint.ocp, "save_checkpointables_async", begin)
    folder = tmp_path / "full"
    assert command_line.run(["train", write_config(folder)]) == 0
    told = capsys.readouterr().out
    assert told.count("could not be saved") == 2 and "No space left on device" in told
    if where == "begin":
        assert tries == [3, 5], "the second try came sooner than the next regular one"
    assert checkpoints_of(folder)[-1] == LAST
    assert not [p for p in (folder / "checkpoints").iterdir() if not p.name.isdigit()]
    losses = [
        [line["loss"] for line in steps_of(run).values()] for run in (folder, finished_run[0])
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_a_last_save_that_never_succeeds_is_an_error_and_loses_no_checkpoint(
    copied, capsys, one_device, monkeypatch
):
    from gemma_train.training import checkpoint

    def full(place, *given):
        raise OSError(errno.EIO, "Input/output error", str(place))

    monkeypatch.setattr(checkpoint, "seal", full)
    monkeypatch.setattr(checkpoint, "_LONGEST_WAIT", 0.01)
    assert command_line.run(["train", copied[1]]) == 5
    assert "goes on from checkpoint 9" in capsys.readouterr().err
    monkeypatch.undo()
    assert 9 in checkpoints_of(copied[0])


@pytest.fixture
def small_disk(tmp_path):
    """A disk with room for a checkpoint or two of the small run, and a file that fills it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_on_a_full_disk_training_goes_on_and_saves_when_there_is_room(
    small_disk, write_config, one_device, monkeypatch, capsys
):
    """Full from step 3 on, metrics and all; somebody makes room after step 10."""
    from gemma_train.training import loop

    folder, filler, take = small_disk / "run", small_disk / "filler", loop.Loop._take_step

    def filling(run, *given):
        if run.number == 2:
            with contextlib.suppress(OSError), open(filler, "wb") as file:
                while True:
                    file.write(bytes(1 << 12))
                    file.flush()
        if run.number == 10:
            filler.unlink()
        return take(run, *given)

    monkeypatch.setattr(loop.Loop, "_take_step", filling)
    assert command_line.run(["train", write_config(folder)]) == 0
    told = capsys.readouterr()
    assert "could not be saved" in told.out
    assert list(steps_of(folder)) == [*range(1, LAST + 1)], "no line is lost"
    assert checkpoints_of(folder)[-1] == LAST
    assert command_line.run(["checkpoint", "verify", str(folder)]) == 0


@pytest.mark.parametrize("how", ["may not be read", "gives no answer"])
def test_what_cannot_be_read_for_a_while_is_not_taken_for_damaged(
    copied, one_device, monkeypatch, capsys, how
):
    from gemma_train import storage

    real, number = storage.sha256, errno.EACCES if how == "may not be read" else errno.ETIMEDOUT

    def refusing(file):
        if "manifest" in file.name:
            raise OSError(number, "no", str(file))
        return real(file)

    with monkeypatch.context() as patched:
        patched.setattr(storage, "sha256", refusing)
        code = command_line.run(["train", copied[1]])
    assert code == (2 if number == errno.EACCES else 5)
    assert "manifest.ocdbt' cannot be read" in capsys.readouterr().err
    assert checkpoints_of(copied[0]) == [6, 9], "nothing was moved"


def test_a_second_job_on_one_folder_refuses(tmp_path, write_config, refused, one_device):
    folder = tmp_path / "shared"
    config = write_config(folder, steps=100_000)
    first = start_stepping(config)
    try:
        told = refused("train", config)
        assert f"another process writes to {str(folder)!r}" in told
        assert "another process" in refused("checkpoint", "prune", str(folder))
        before = checkpoints_of(folder)
    finally:
        first.send_signal(signal.SIGINT)
        codes, words = ended(first)
    assert codes == [0], words
    assert checkpoints_of(folder)[-1] >= max(before, default=0)


def test_another_config_is_refused_and_an_accepted_change_is_recorded(
    copied, refused, gemma_train, one_device
):
    folder, config = copied
    change = ("--optimizer.peak-lr", "2e-3")
    told = refused("train", config, *change)
    assert "optimizer.peak_lr was 0.001, is 0.002" in told
    assert "--accepted-changes optimizer.peak_lr" in told
    done = gemma_train("train", config, *change, "--accepted-changes", "optimizer.peak_lr")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    events = [line for line in lines if line["kind"] == "event"]
    assert [line["what"] for line in events] == ["accepted: optimizer.peak_lr was 0.001, is 0.002"]
    assert "peak_lr=0.002" in (folder / "config.py").read_text()


def test_an_accepted_change_that_names_no_field(refused, write_config, tmp_path):
    told = refused("train", write_config(tmp_path / "x"), "--accepted-changes", "optimizer.peak")
    assert "accepted_changes" in told and "'optimizer.peak'" in told


def test_other_versions_are_told_and_recorded(copied, gemma_train, tmp_path):
    """A checkpoint written by other sources: resumed, and said so."""
    folder, config = copied
    before = (folder / "checkpoints" / "9" / "_CHECKPOINT_METADATA").read_text()
    versions = json.loads(before)["custom_metadata"]["versions"]
    assert {"jax", "sources"} <= versions.keys()
    program = (
        "import sys; from gemma_train.training import versions as v; real = v.versions();"
        "v.versions = lambda: real | {'jax': '9.9'};"
        "from gemma_train.commands.command_line import run; sys.exit(run(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "train", config],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    drift = f"jax {versions['jax']} then, 9.9 now"
    assert drift in done.stdout
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (event,) = [line["what"] for line in lines if line["kind"] == "event"]
    assert drift in event


def test_fewer_replicas_take_the_same_batch_in_more_parts(
    tmp_path, write_config, finished_run, gemma_train
):
    """A replica is lost: half the devices, twice the microbatches, the same steps."""
    folder = tmp_path / "lost"
    config = write_config(folder)
    two = ("--mesh.replica", "2")
    done = gemma_train("train", config, *two, "--steps", "12", devices=2)
    assert done.returncode == 0, done.stderr
    for step in (9, 12):
        shutil.rmtree(folder / "checkpoints" / str(step))
    (folder / "summary.json").unlink()
    again = gemma_train("train", config, "--mesh.replica", "1", "--accumulation", "2")
    assert again.returncode == 0, again.stderr
    assert "going on from step 6" in again.stdout
    for number, line in steps_of(finished_run[0]).items():
        found = steps_of(folder)[number]
        assert found["loss"] == pytest.approx(line["loss"], abs=1e-4)
        assert found["learning_rate"] == line["learning_rate"]
        assert found["tokens"] == line["tokens"]


def test_a_run_that_replays_its_steps_is_the_same_run(
    tmp_path, write_config, finished_run, gemma_train
):
    folder = tmp_path / "replayed"
    done = gemma_train("train", write_config(folder), "--replay-every-steps", "5")
    assert done.returncode == 0, done.stderr
    assert_same_arrays(saved_arrays(folder, LAST), saved_arrays(finished_run[0], LAST))


def test_faulty_hardware_has_an_exit_code_of_its_own(
    tmp_path, write_config, one_device, monkeypatch, capsys
):
    from gemma_train.training import replay

    answers = iter([["a"], ["b"], ["c"]])
    monkeypatch.setattr(replay, "by_replica", lambda tree: next(answers))
    config = write_config(tmp_path / "faulty")
    assert command_line.run(["train", config, "--replay-every-steps", "5"]) == 4
    assert "step 5, computed twice, gave two states" in capsys.readouterr().err
