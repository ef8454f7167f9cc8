"""The fault matrix, one process: what happens to a run in each phase, and what it then does."""

import errno
import http.server
import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from gemma_train.commands import command_line
from tests.commands.conftest import environment
from tests.commands.interrupted import PHASES
from tests.commands.processes import (
    assert_same_arrays,
    checkpoints_of,
    ended,
    saved_arrays,
    start,
    steps_of,
)

LAST = 12


def flip(file: Path, bit: int = 12345) -> None:
    content = bytearray(file.read_bytes())
    bit %= 8 * len(content)
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


@pytest.mark.parametrize("phase", PHASES)
def test_a_sigterm_in_any_phase_saves_once_and_ends_well(
    tmp_path, write_config, finished_run, phase
):
    folder = tmp_path / phase
    config = write_config(folder)
    codes, words = ended(start("train", config, hit=(phase, "SIGTERM")))
    assert codes == [0], words
    assert "happens" in words[0] and "saved: the same command goes on" in words[0]
    step = max(checkpoints_of(folder))
    assert step < LAST and not (folder / "summary.json").exists()
    assert_same_state_when_done(config, folder, finished_run[0])


@pytest.mark.parametrize("phase", ["step", "save", "hashing"])
def test_a_kill_in_any_phase_leaves_a_run_that_goes_on(tmp_path, write_config, finished_run, phase):
    folder = tmp_path / phase
    config = write_config(folder)
    codes, words = ended(start("train", config, hit=(phase, "SIGKILL")))
    assert codes == [-signal.SIGKILL], words
    left = {path.name for path in (folder / "checkpoints").iterdir()}
    assert "3" in left
    if phase != "step":
        assert "6.unfinished-0" in left
    assert_same_state_when_done(config, folder, finished_run[0])


def assert_same_state_when_done(config: str, folder: Path, whole: Path) -> None:
    codes, words = ended(start("train", config))
    assert codes == [0], words
    assert_same_arrays(saved_arrays(folder, LAST), saved_arrays(whole, LAST))
    losses = [{n: line["loss"] for n, line in steps_of(one).items()} for one in (folder, whole)]
    assert losses[0] == losses[1]
    assert len(checkpoints_of(folder)) == 3 and checkpoints_of(folder)[-1] == LAST


def test_a_second_signal_ends_at_once(tmp_path, write_config):
    folder = tmp_path / "twice"
    process = start(
        "train", write_config(folder, steps=100_000), "--checkpoint-every-steps", "100000"
    )
    told = ""
    for line in process.stdout:  # both come within a step
        told += line
        if "step" in line and "loss" in line:
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)
            break
    codes, words = ended(process)
    assert codes[0] in (0, 130), told + words[0]


# Damage.


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


def test_a_state_that_is_not_the_one_saved_is_refused(copied, refused, one_device, monkeypatch):
    """As if memory or a file system changed it between the files, which are whole, and the chip."""
    from gemma_train.training import checkpoint

    real = checkpoint.from_paths

    def flipped(leaves, like):
        table = np.array(leaves["model/embedding/table"])
        table.reshape(-1).view(np.uint32)[7] ^= 1
        place = leaves["model/embedding/table"].sharding
        return real({**leaves, "model/embedding/table": jax.device_put(table, place)}, like)

    monkeypatch.setattr(checkpoint, "from_paths", flipped)
    assert "checkpoints/9 was restored as" in refused("train", copied[1])


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


# Storage.


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
    copied, refused, one_device, monkeypatch
):
    from gemma_train.training import checkpoint

    def full(place, *given):
        raise OSError(errno.EIO, "Input/output error", str(place))

    monkeypatch.setattr(checkpoint, "seal", full)
    monkeypatch.setattr(checkpoint, "_LONGEST_WAIT", 0.01)
    assert "goes on from checkpoint 9" in refused("train", copied[1])
    monkeypatch.undo()
    assert 9 in checkpoints_of(copied[0])


# One writer, and drift.


def test_a_second_job_on_one_folder_refuses(tmp_path, write_config, refused, one_device):
    folder = tmp_path / "shared"
    config = write_config(folder, steps=100_000)
    first = start("train", config)
    for line in first.stdout:
        if "step" in line and "loss" in line:
            break
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


def test_other_versions_are_told(copied, gemma_train, tmp_path):
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
    assert f"jax {versions['jax']} then, 9.9 now" in done.stdout


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


def test_a_notice_of_maintenance_saves_and_ends_well(tmp_path, write_config):
    """A metadata server on loopback that says what Compute Engine says ahead of an end."""
    folder = tmp_path / "noticed"

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            preempted = "preempted" in self.path
            self.send_response(200)
            self.send_header("Metadata-Flavor", "Google")
            self.send_header("ETag", "1")
            self.end_headers()
            self.wfile.write(b"TRUE" if preempted else b"NONE")

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"127.0.0.1:{server.server_port}"
        config = write_config(folder, steps=100_000)
        codes, words = ended(start("train", config, GCE_METADATA_HOST=place))
        server.shutdown()
    assert codes == [0], words
    assert "notice from Compute Engine: preempted" in words[0] and "saved" in words[0]
    assert checkpoints_of(folder)
