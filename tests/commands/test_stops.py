"""Signals, kills and notices in every phase of a run, and what it then goes on from."""

import http.server
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from gemma_train.commands import command_line
from tests.commands.interrupted import PHASES, SLOW
from tests.commands.processes import (
    LAST,
    assert_same_arrays,
    checkpoints_of,
    ended,
    saved_arrays,
    start,
    steps_of,
)


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
    newest = max(checkpoints_of(folder))
    codes, words = ended(start("train", config))
    assert codes == [0], words
    assert f"going on from step {newest}" in words[0]
    assert_same_arrays(saved_arrays(folder, LAST), saved_arrays(whole, LAST))
    losses = [{n: line["loss"] for n, line in steps_of(one).items()} for one in (folder, whole)]
    assert losses[0] == losses[1]
    assert len(checkpoints_of(folder)) == 3 and checkpoints_of(folder)[-1] == LAST


@pytest.mark.parametrize(("second", "code"), [("SIGINT", 130), ("SIGTERM", 0)])
def test_a_second_ctrl_c_ends_at_once_and_a_second_sigterm_does_not(
    tmp_path, write_config, finished_run, second, code
):
    """Both come while a save is at a slow disk, which the end at once does not wait for."""
    folder = tmp_path / "twice"
    config = write_config(folder)
    run = start("train", config, hit=("slow disk", "SIGTERM"))
    assert any("sleeps" in line for line in run.stdout)
    time.sleep(1.0)  # until the run waits for it
    begun = time.monotonic()
    run.send_signal(getattr(signal, second))
    codes, words = ended(run)
    assert codes == [code], words
    if second == "SIGINT":
        assert time.monotonic() - begun < SLOW / 2
        assert words[0].splitlines()[-1] == "stopped"
        assert checkpoints_of(folder) == [3]
        assert (folder / "checkpoints" / "6.unfinished-0").exists(), (
            "it is cleared at the next start"
        )
    else:
        assert "saved: the same command goes on" in words[0]
        assert max(checkpoints_of(folder)) >= 6
    assert_same_state_when_done(config, folder, finished_run[0])


def test_a_stop_among_bad_steps_goes_on_as_if_it_had_not_been(
    tmp_path, write_config, one_device, monkeypatch
):
    """Steps 5 and 6 are bad, and it is stopped after 6: the state of step 3 is gone on from."""
    from gemma_train.training import loop

    take, place = loop.Loop._take_step, loop.place

    def stopped(run, *given):
        bad = run.number in (4, 5)
        monkeypatch.setattr(loop, "place", poisoned if bad else place)
        if run.number == 5 and tmp_path.name not in told:
            told.append(tmp_path.name)
            signal.raise_signal(signal.SIGTERM)
        return take(run, *given)

    def poisoned(batch, *given):
        batch.weights_bt[...] = np.nan
        return place(batch, *given)

    told: list[str] = []
    monkeypatch.setattr(loop.Loop, "_take_step", stopped)
    config = write_config(tmp_path / "bad")
    assert command_line.run(["train", config]) == 0
    assert checkpoints_of(tmp_path / "bad") == [3]
    assert command_line.run(["train", config]) == 0
    assert [n for n, line in steps_of(tmp_path / "bad").items() if line["skipped"]] == [5, 6]
    assert checkpoints_of(tmp_path / "bad") == [7, 9, 12], "the save due at 6 is owed until 7"


def test_a_finished_run_that_is_made_longer_is_not_finished(
    tmp_path, write_config, gemma_train, finished_run
):
    folder = tmp_path / "longer"
    shutil.copytree(finished_run[0], folder)
    config = write_config(folder, steps=14)
    words = ("train", config, "--accepted-changes", "steps", "--folder", str(folder))
    codes, told = ended(start(*words, hit=("compile", "SIGTERM")))
    assert codes == [0], told
    assert max(checkpoints_of(folder)) == 13 and not (folder / "summary.json").exists()
    done = gemma_train(*words)
    assert "going on from step 13" in done.stdout, done.stderr
    assert (folder / "summary.json").exists()


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
