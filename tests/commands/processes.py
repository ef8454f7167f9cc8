"""Runs in processes of their own: alone or two together, hit in a phase, and what they leave."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from gemma_train.checkpoints.folder import CheckpointFolder
from tests.commands.conftest import ROOT, command, environment

LAST = 12  # step of the small run
# Seconds in which those that wait for a lost process end: the heartbeat's 10, the 5 for which jax's
# end is waited for, and four times as much for a busy machine. jax alone would take 300.
BY_THE_HEARTBEAT = 60
MANY = ("--mesh.data", "2", "--mesh.runtime", "many_processes", "--mesh.heartbeat-seconds", "10")


def steps_of(folder: Path, kind: str = "train") -> dict[int, dict]:
    """The lines of a kind by step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if line["kind"] == kind}


def checkpoints_of(folder: Path) -> list[int]:
    """The steps of a run's finished checkpoints."""
    return CheckpointFolder(str(folder)).steps


def saved_arrays(folder: Path, step: int) -> dict[str, np.ndarray]:
    """Every leaf of a checkpoint, by path."""
    from gemma_train.conversion import orbax_arrays

    found = orbax_arrays.stored(CheckpointFolder(str(folder)).checkpoint(step))
    return {path: leaf.read() for path, leaf in found.items()}


def assert_same_arrays(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    for path, leaf in other.items():
        assert one[path].dtype == leaf.dtype, path
        assert one[path].tobytes() == leaf.tobytes(), path


def start(*words: str, hit: tuple[str, str] | None = None, devices: int = 1, **variables: str):
    """Start `gemma-train WORDS`, to which something happens in a phase: see `interrupted`."""
    program = ("tests.commands.interrupted", *hit) if hit else ("gemma_train",)
    return subprocess.Popen(
        [sys.executable, "-m", *program, *words],
        env={**environment(devices), **variables},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_stepping(config: str) -> subprocess.Popen:
    """A run under way: one that has told of a step."""
    run = start("train", config)
    for line in run.stdout:
        if "step" in line and "loss" in line:
            break
    return run


def start_two(
    *words: str, hit: tuple[str, str] | None = None, number_hit: int = 1
) -> list[subprocess.Popen]:
    """Two processes of one run, joined over loopback; what happens, happens to one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    joined = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "HIT": str(number_hit)}
    return [
        start(*words[:2], *MANY, *words[2:], hit=hit, **joined, JAX_PROCESS_ID=str(number))
        for number in (0, 1)
    ]


def ended(*processes: subprocess.Popen, seconds: float = 240) -> tuple[list[int], list[str]]:
    """Exit codes and words of processes; none outlives the time."""
    until, words = time.monotonic() + seconds, []
    try:
        for process in processes:
            words.append(process.communicate(timeout=max(until - time.monotonic(), 1))[0])
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], words


def flip(file: Path, bit: int = 12345) -> None:
    """Flip one bit of a file."""
    content = bytearray(file.read_bytes())
    bit %= 8 * len(content)
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def wait_for_step(folder: Path, step: int, process: subprocess.Popen) -> bool:
    """Whether the run recorded so many lines before it ended."""
    metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= step:
            return True
        time.sleep(0.002)
    return False


def kill_at(
    config: str, folder: Path, step: int, how: signal.Signals, *words: str, devices: int = 1
) -> tuple[int, str]:
    """Start a run and send it `how` as soon as it has recorded `step`; its exit code and words."""
    process = subprocess.Popen(
        command("train", config, *words),
        env=environment(devices),
        stdout=subprocess.PIPE,
        text=True,
    )
    if wait_for_step(folder, step, process):
        process.send_signal(how)
    told, _ = process.communicate(timeout=120)
    return process.returncode, told
