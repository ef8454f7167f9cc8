"""What one of two processes does alone, over loopback: it reads, and the other is not held up."""

import shutil

from gemma_train.teachers.stored import SUM
from tests.commands.processes import LAST, checkpoints_of, ended, start_two


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
