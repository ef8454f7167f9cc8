"""worker.sh as a host runs it, with a stand-in for gemma-train."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest

TRAIN = """#!/usr/bin/env bash
trap 'echo saving; exit 0' TERM
echo "training $* with $FLAVOUR"
case $FLAVOUR in crash) exit 7 ;; mistake) exit 2 ;; done) exit 0 ;; esac
for _ in {1..1500}; do sleep 0.02; done  # not for ever, even if the tests are killed
"""


@pytest.fixture
def host(cloud, bash, tmp_path):
    """A home folder that was set up; calls worker.sh there."""
    home = tmp_path / "home"
    (home / "venv/bin").mkdir(parents=True)
    (home / "source").mkdir()
    (home / "worker.sh").write_text((tmp_path / "launch/worker.sh").read_text())
    (home / "venv/bin/gemma-train").write_text(TRAIN)
    (home / "venv/bin/gemma-train").chmod(0o755)
    (home / "ready").touch()

    started: set[int] = set()

    def call(*words: str) -> subprocess.CompletedProcess:
        command = ["/bin/bash", str(home / "worker.sh"), *words]
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=20)
        finally:
            if (home / "pid").exists():
                started.add(int((home / "pid").read_text()))

    yield home, call
    for group in started:
        wait_until(partial(gone, group))


def living(group: int) -> list[int]:
    """The processes of a group; its leader may not lead it yet."""
    listed = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True)
    rows = [line.split() for line in listed.stdout.splitlines()]
    return [int(pid) for pid, of, state in rows if str(group) in (pid, of) and state[0] != "Z"]


def gone(group: int) -> bool:
    """Whether nothing is left of a group; what is, is killed."""
    left = living(group)
    for process in left:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return not left


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for it, ten seconds at most, and fail then."""
    for _ in range(200):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def wait_for(call, state: str) -> None:
    wait_until(lambda: call("status").stdout.strip() == state)


def wait_for_training(home) -> None:
    wait_until(lambda: "training" in (home / "log").read_text())


def start(host, flavour: str) -> None:
    home, call = host
    (home / "worker.env").write_text(f"FLAVOUR={flavour}\n")
    done = call("start", "gs://b/logs", "train", "configs/my run.py")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("flavour", "told"), [("done", "exit 0"), ("crash", "exit 7"), ("mistake", "exit 2")]
)
def test_a_process_leaves_its_exit_code_and_its_log(host, cloud, flavour, told):
    home, call = host
    start(host, flavour)
    wait_for(call, told)
    assert (home / "log").read_text().startswith(f"training train configs/my run.py with {flavour}")
    wait_until(lambda: cloud.lines)
    assert cloud.lines[0].startswith("gcloud storage cp log gs://b/logs/")


def test_nothing_is_left_of_a_process_that_has_ended(host):
    home, _ = host
    start(host, "done")
    group = int((home / "pid").read_text())
    wait_until(lambda: not living(group))


def test_stop_lets_the_process_save_and_says_that_it_was_stopped(host):
    home, call = host
    start(host, "endless")
    wait_for_training(home)
    assert call("status").stdout == "running\n"
    assert call("stop").returncode == 0
    wait_for(call, "stopped")
    assert (home / "log").read_text().endswith("saving\n")


def test_a_run_that_is_saved_for_another_start_was_not_stopped(host):
    home, call = host
    start(host, "endless")
    wait_for_training(home)
    assert call("save").returncode == 0
    wait_for(call, "exit 0")
    assert (home / "log").read_text().endswith("saving\n")


@pytest.mark.parametrize("verb", ["save", "stop"])
def test_what_has_ended_or_never_began_may_be_stopped_again(host, verb):
    _, call = host
    ready = call(verb)
    start(host, "crash")
    wait_for(call, "exit 7")
    ended = call(verb)
    assert (ready.returncode, ready.stderr) == (ended.returncode, ended.stderr) == (0, "")
    assert call("status").stdout == "exit 7\n"


def test_a_start_ends_what_is_left_of_an_earlier_one(host):
    home, call = host
    start(host, "endless")
    wait_for_training(home)
    earlier = int((home / "pid").read_text())
    start(host, "done")
    assert not living(earlier)
    wait_for(call, "exit 0")


def test_a_process_that_vanished_counts_as_killed(host):
    home, call = host
    start(host, "endless")
    wait_for_training(home)
    os.kill(-int((home / "pid").read_text()), signal.SIGKILL)
    wait_for(call, "exit 137")


def test_a_host_tells_how_far_it_is_set_up(host):
    home, call = host
    assert call("status").stdout == "ready\n"
    (home / "ready").unlink()
    assert call("status").stdout == "absent\n"
    refused = call("start", "gs://b/logs", "train")
    assert (refused.returncode, refused.stderr) == (1, "not set up: run setup first\n")
