"""Two processes of one run over loopback: stopped together, lost, frozen, and resumed otherwise."""

import signal

import pytest
from etils import epath

from gemma_train.checkpoints.seal import contents
from gemma_train.errors import Stalled
from tests.commands.interrupted import PHASES
from tests.commands.processes import (
    BY_THE_HEARTBEAT,
    checkpoints_of,
    ended,
    flip,
    start,
    start_stepping,
    start_two,
    steps_of,
    wait_for_step,
)

LAST = 12


@pytest.fixture
def as_one(finished_run):
    """Asserts that a folder's losses are those of the run that nothing disturbed."""

    def check(folder) -> None:
        for number, line in steps_of(finished_run[0]).items():
            assert steps_of(folder)[number]["loss"] == pytest.approx(line["loss"], abs=1e-4)

    return check


@pytest.mark.parametrize(
    ("phase", "signal"),
    [*((phase, "SIGTERM") for phase in PHASES), ("step", "SIGINT"), ("evaluation", "SIGINT")],
)
def test_a_stop_of_one_in_any_phase_saves_both(tmp_path, write_config, as_one, phase, signal):
    folder = tmp_path / phase
    config = write_config(folder)
    codes, words = ended(*start_two("train", config, hit=(phase, signal)))
    assert codes == [0, 0], words
    assert "happens" in words[1] and "saved: the same command goes on" in words[0]
    step = max(checkpoints_of(folder))
    # Processes agree on a step ahead within about a second: of quick ones it may be the last.
    assert step == max(steps_of(folder)) <= LAST
    assert len(list((folder / "checkpoints" / str(step)).glob("seal-*-of-00002.json"))) == 2
    codes, words = ended(start("train", config))  # goes on as one process
    assert codes == [0], words
    assert f"going on from step {step}" in words[0]
    as_one(folder)


@pytest.mark.parametrize(("number", "sent"), [(2, signal.SIGINT), (1, signal.SIGTERM)])
def test_a_stop_of_one_or_both_ends_both_far_ahead_of_the_last_step(
    tmp_path, write_config, number, sent
):
    """A terminal's Ctrl-C comes to all of its processes, a SIGTERM to one."""
    folder, steps = tmp_path / "stopped", 100_000
    processes = start_two("train", write_config(folder, steps=steps))
    assert wait_for_step(folder, 3, processes[0])
    for process in processes[-number:]:
        process.send_signal(sent)
    codes, words = ended(*processes)
    assert codes == [0, 0], words
    assert max(checkpoints_of(folder)) == max(steps_of(folder)) < steps


def test_a_second_ctrl_c_to_one_ends_it_at_once(tmp_path, write_config):
    config = write_config(tmp_path / "twice")
    codes, words = ended(*start_two("train", config, hit=("step", "SIGINT SIGINT")))
    assert codes[1] == -signal.SIGINT, words
    assert codes[0] not in (0, -signal.SIGINT), words[0]
    assert max(checkpoints_of(tmp_path / "twice")) == 6


@pytest.mark.parametrize(
    ("phase", "number", "newest"),
    [("step", 1, 6), ("save", 1, 3), ("hashing", 1, 3), ("step", 0, 6), ("save", 0, 3)],
)
def test_when_one_is_killed_the_other_ends_within_the_heartbeat_and_two_go_on(
    tmp_path, write_config, as_one, phase, number, newest
):
    """Also where the leader is killed, which holds the service that tells of heartbeats."""
    folder = tmp_path / phase
    config = write_config(folder)
    processes = start_two("train", config, hit=(phase, "SIGKILL"), number_hit=number)
    assert processes[number].wait(timeout=240) == -signal.SIGKILL
    codes, words = ended(processes[1 - number], seconds=BY_THE_HEARTBEAT)
    assert codes[0] not in (0, -signal.SIGKILL), words[0]  # it ended by itself, and not well
    assert max(checkpoints_of(folder)) == newest
    codes, words = ended(*start_two("train", config))
    assert codes == [0, 0], words
    assert f"going on from step {newest}" in words[0]
    as_one(folder)


def test_when_one_is_frozen_the_other_says_where_it_waits_and_ends(tmp_path, write_config, as_one):
    """The watchdog's time is shorter than the heartbeat's here."""
    folder = tmp_path / "frozen"
    config = write_config(folder)
    words = ("--watchdog-minutes", "0.1", "--mesh.heartbeat-seconds", "100")
    leader, frozen = start_two("train", config, *words, hit=("step", "SIGSTOP"))
    codes, told = ended(leader, seconds=120)
    frozen.kill()
    frozen.communicate()
    assert codes == [Stalled.exit_code], told
    kept = (folder / "stacks-0.txt").read_text()
    assert "nothing heard for" in kept and "loop.py" in kept
    newest = max(checkpoints_of(folder))
    codes, words = ended(start("train", config))
    assert codes == [0], words
    assert f"going on from step {newest}" in words[0]
    as_one(folder)


@pytest.mark.parametrize("number", [0, 1])
def test_a_bit_that_one_process_reads_is_passed_over_by_both(
    tmp_path, write_config, as_one, number
):
    """Files are shared out among processes: of two that follow each other, each reads one."""
    folder = tmp_path / "damaged"
    config = write_config(folder)
    codes, words = ended(*start_two("train", config, "--checkpoint-every-steps", "2"))
    assert codes == [0, 0], words
    (folder / "summary.json").unlink()  # else there is nothing left to do
    steps = checkpoints_of(folder)
    newest = folder / "checkpoints" / str(steps[-1])
    flip(newest / contents(epath.Path(newest))[number].name)
    codes, words = ended(*start_two("train", config))
    assert codes == [0, 0], words
    assert f"checkpoint {steps[-1]} is damaged" in words[0]
    assert f"going on from step {steps[-2]}" in words[0]
    as_one(folder)


def test_a_second_job_of_two_processes_is_refused_on_both(tmp_path, write_config):
    folder = tmp_path / "shared"
    config = write_config(folder, steps=100_000)
    first = start_stepping(config)
    codes, words = ended(*start_two("train", config))
    first.send_signal(signal.SIGINT)
    assert ended(first)[0] == [0]
    assert codes == [2, 2], words
    assert all("another process writes to" in told for told in words)


def test_the_state_that_two_saved_is_the_one_that_a_process_alone_restores(tmp_path, write_config):
    """By its digest, which a restoration is held to."""
    folder = tmp_path / "moved"
    config = write_config(folder)
    codes, words = ended(*start_two("train", config, hit=("save", "SIGTERM")))
    assert codes == [0, 0], words
    step = max(checkpoints_of(folder))
    fewer = ("--steps", str(step), "--accepted-changes", "steps")
    codes, words = ended(start("train", config, *fewer))
    assert codes == [0], words
    assert f"going on from step {step}" in words[0]
