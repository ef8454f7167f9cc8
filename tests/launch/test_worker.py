"""worker.sh as a host runs it, with a stand-in for gemma-train."""

import subprocess
import time

import pytest

TRAIN = """#!/usr/bin/env bash
trap 'echo saving; exit 0' TERM
echo "training $* with $FLAVOUR"
case $FLAVOUR in crash) exit 7 ;; mistake) exit 2 ;; done) exit 0 ;; esac
while true; do sleep 0.02; done
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

    def call(*words: str) -> subprocess.CompletedProcess:
        command = ["/bin/bash", str(home / "worker.sh"), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=20)

    yield home, call
    if (home / "pid").exists():
        subprocess.run(["kill", "-KILL", "--", f"-{(home / 'pid').read_text().strip()}"])


def wait_for(call, *states: str) -> str:
    """The first of `states` that the host tells, or what it tells after ten seconds."""
    for _ in range(200):
        told = call("status").stdout.strip()
        if told in states:
            return told
        time.sleep(0.05)
    return told


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
    assert wait_for(call, told) == told
    assert (home / "log").read_text().startswith(f"training train configs/my run.py with {flavour}")
    for _ in range(100):
        if cloud.lines:
            break
        time.sleep(0.05)
    assert cloud.lines[0].startswith("gcloud storage cp log gs://b/logs/")


def test_stop_lets_the_process_save_and_says_that_it_was_stopped(host):
    home, call = host
    start(host, "endless")
    assert wait_for(call, "running") == "running"
    while "training" not in (home / "log").read_text():
        time.sleep(0.02)
    assert call("stop").returncode == 0
    assert wait_for(call, "stopped") == "stopped"
    assert (home / "log").read_text().endswith("saving\n")


def test_a_start_ends_what_is_left_of_an_earlier_one(host):
    home, call = host
    start(host, "endless")
    while "training" not in (home / "log").read_text():
        time.sleep(0.02)
    earlier = (home / "train_pid").read_text()
    start(host, "done")
    assert wait_for(call, "exit 0") == "exit 0"
    for _ in range(100):
        if subprocess.run(["kill", "-0", earlier.strip()], capture_output=True).returncode:
            return
        time.sleep(0.05)
    raise AssertionError("the earlier process lives")


def test_a_process_that_vanished_counts_as_killed(host):
    home, call = host
    start(host, "endless")
    wait_for(call, "running")
    subprocess.run(["kill", "-KILL", "--", f"-{(home / 'pid').read_text().strip()}"])
    assert wait_for(call, "exit 137") == "exit 137"


def test_a_host_tells_how_far_it_is_set_up(host):
    home, call = host
    assert call("status").stdout == "ready\n"
    (home / "ready").unlink()
    assert call("status").stdout == "absent\n"
    refused = call("start", "gs://b/logs", "train")
    assert (refused.returncode, refused.stderr) == (1, "not set up: run setup first\n")
