"""Whole runs in processes of their own: killed, stopped, repeated, moved to another mesh."""

import signal
import socket
import subprocess
import time

import numpy as np
import pytest

from tests.commands.conftest import command, environment
from tests.commands.processes import (
    checkpoints_of,
    kill_at,
    saved_arrays,
    steps_of,
    wait_for_step,
)


def test_a_run_killed_at_any_moment_resumes_bit_for_bit(
    tmp_path, write_config, gemma_train, finished_run
):
    whole, _ = finished_run
    folder = tmp_path / "killed"
    config = write_config(folder)
    step = int(np.random.default_rng(time.time_ns()).integers(1, 11))
    code, _ = kill_at(config, folder, step, signal.SIGKILL)
    assert code == -signal.SIGKILL, f"the run ended by itself before step {step}"
    assert not (folder / "summary.json").exists()
    there = checkpoints_of(folder)
    again = gemma_train("train", config)
    assert again.returncode == 0, again.stderr
    assert (f"going on from step {max(there, default=0)}" in again.stdout) == bool(there)
    for name in ("loss", "gradient_norm", "cross_entropy"):
        expected = {number: line[name] for number, line in steps_of(whole).items()}
        assert {number: line[name] for number, line in steps_of(folder).items()} == expected
    assert steps_of(folder, "evaluation")[12]["loss"] == steps_of(whole, "evaluation")[12]["loss"]
    killed, undisturbed = saved_arrays(folder, 12), saved_arrays(whole, 12)
    assert killed.keys() == undisturbed.keys()
    assert any("moments" in path for path in killed)
    for path, leaf in undisturbed.items():
        np.testing.assert_array_equal(killed[path], leaf, err_msg=path)


def test_a_checkpoint_holds_the_state_of_its_own_step_and_not_of_a_later_one(
    tmp_path, write_config, gemma_train, finished_run
):
    """Saving goes on while steps run and donate their buffers: they must not reach the save."""
    whole, _ = finished_run
    short = tmp_path / "short"
    config = write_config(short)
    done = gemma_train("train", config, "--checkpoint-every-steps", "9")
    assert done.returncode == 0, done.stderr
    for path, leaf in saved_arrays(whole, 9).items():
        np.testing.assert_array_equal(saved_arrays(short, 9)[path], leaf, err_msg=path)
    assert int(saved_arrays(whole, 9)["step"]) == 9


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path, write_config, gemma_train):
    folder = tmp_path / "stopped"
    config = write_config(folder, steps=5000)
    code, words = kill_at(config, folder, 2, signal.SIGINT)
    assert code == 0, words
    assert "saved" in words
    reached = max(int(path.name) for path in (folder / "checkpoints").iterdir())
    assert max(steps_of(folder)) == reached >= 2
    more = ("--steps", str(reached + 1), "--accepted-changes", "steps")
    again = gemma_train("train", config, *more)
    assert again.returncode == 0, again.stderr
    assert f"going on from step {reached}" in again.stdout
    assert max(checkpoints_of(folder)) == max(steps_of(folder)) == reached + 1


def test_a_finished_run_says_what_exists_and_what_to_do(finished_run, gemma_train):
    folder, config = finished_run
    before = (folder / "metrics.jsonl").read_bytes()
    again = gemma_train("train", config)
    assert again.returncode == 0
    assert "finished" in again.stdout
    assert "remove" in again.stdout
    assert (folder / "metrics.jsonl").read_bytes() == before


def on_mesh(replica: int, data: int, seq: int) -> tuple[str, ...]:
    sizes = {"replica": replica, "data": data, "seq": seq}
    return tuple(word for axis, size in sizes.items() for word in (f"--mesh.{axis}", str(size)))


def test_a_run_goes_on_on_another_mesh(tmp_path, write_config, gemma_train, finished_run):
    whole, _ = finished_run
    folder = tmp_path / "moved"
    config = write_config(folder)
    code, _ = kill_at(config, folder, 7, signal.SIGKILL, *on_mesh(2, 2, 2), devices=8)
    assert code == -signal.SIGKILL
    newest = max(checkpoints_of(folder))
    moved = gemma_train("train", config, *on_mesh(1, 4, 2), devices=8)
    assert moved.returncode == 0, moved.stderr
    assert f"going on from step {newest}" in moved.stdout
    for number, line in steps_of(whole).items():
        assert steps_of(folder)[number]["loss"] == pytest.approx(line["loss"], abs=1e-4)


def test_two_processes_train_as_one(tmp_path, write_config, finished_run):
    """Two processes of two devices each, joined over loopback, against one device."""
    whole, _ = finished_run
    folder = tmp_path / "joined"
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    config = write_config(folder)
    words = ("--mesh.data", "2", "--mesh.seq", "2", "--mesh.runtime", "many_processes")
    joined = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    processes = [
        subprocess.Popen(
            command("train", config, *words),
            env={**environment(2), **joined, "JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in (0, 1)
    ]
    told = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    for number, line in steps_of(whole).items():
        assert steps_of(folder)[number]["loss"] == pytest.approx(line["loss"], abs=1e-4)


def test_a_sigterm_to_one_of_two_processes_saves_both_at_one_step(tmp_path, write_config):
    folder = tmp_path / "preempted"
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    config = write_config(folder, steps=5000)
    words = ("--mesh.data", "2", "--mesh.runtime", "many_processes")
    joined = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    processes = [
        subprocess.Popen(
            command("train", config, *words, "--checkpoint-every-steps", "100000"),
            env={**environment(1), **joined, "JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in (0, 1)
    ]
    wait_for_step(folder, 3, processes[0])
    processes[1].send_signal(signal.SIGTERM)
    told = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert "saved" in told[0]
    assert max(steps_of(folder)) == max(
        int(path.name) for path in (folder / "checkpoints").iterdir()
    )
