"""What one of two processes does alone, over loopback: it reads or fails, and holds up no other."""

import shutil
import time

import pytest

from gemma_train.teachers.stored import SUM
from tests.commands.processes import BY_THE_HEARTBEAT, LAST, checkpoints_of, ended, start_two


def test_a_teacher_that_the_leader_reads_alone_leaves_saves_of_both_as_they_are(
    tmp_path, whole_store
):
    """Its parameters are read from a run's checkpoint, which Orbax is not to count as its work."""
    store, config = whole_store
    copy, folder = tmp_path / "store", tmp_path / "student"
    shutil.copytree(store, copy)
    (copy / SUM).unlink()  # so that they are read, not remembered
    flags = ("--loss.teacher.folder", str(copy), "--folder", str(folder))
    codes, words = ended(*start_two("train", config, *flags), seconds=120)
    assert codes == [0, 0], words
    assert "could not be saved" not in words[0]
    assert (copy / SUM).exists(), "read anew"
    assert checkpoints_of(folder)[-1] == LAST


@pytest.mark.parametrize(
    ("happening", "number", "code", "told"),
    [
        ("Unrecoverable", 0, 3, "gemma-train: is raised\n"),
        ("TimeoutError", 1, 5, "gemma-train: is raised\n"),
        ("RuntimeError", 1, 1, "\nRuntimeError: is raised\n"),
    ],
)
def test_one_that_fails_alone_ends_with_its_code_and_the_other_by_the_heartbeat(
    tmp_path, write_config, happening, number, code, told
):
    config = write_config(tmp_path / "failing")
    processes = start_two("train", config, hit=("step", happening), number_hit=number)
    for line in processes[number].stdout:
        if line == "happens\n":
            break
    began = time.monotonic()
    codes, words = ended(processes[number], processes[1 - number], seconds=BY_THE_HEARTBEAT)
    assert codes[0] == code and told in words[0]
    assert codes[1] != 0, words[1]  # it waited for the other, and was ended
    assert time.monotonic() - began < BY_THE_HEARTBEAT


@pytest.mark.parametrize(
    ("phase", "happening", "number", "code", "told"),
    [
        ("clearing", "PermissionError", 0, 2, "gemma-train: is raised"),
        ("verifying", "TimeoutError", 1, 5, "gemma-train: is raised"),
        ("restoring", "UserError", 1, 2, "9 cannot be read: is raised; if it is damaged, move"),
        ("restoring", "TimeoutError", 1, 5, "gemma-train: is raised"),
    ],
)
def test_what_one_meets_on_the_way_into_a_run_is_told_by_both(
    copied, phase, happening, number, code, told
):
    hit = (phase, happening)
    codes, words = ended(
        *start_two("train", copied[1], hit=hit, number_hit=number), seconds=BY_THE_HEARTBEAT
    )
    assert codes == [code, code], words
    assert all(told in text for text in words)
