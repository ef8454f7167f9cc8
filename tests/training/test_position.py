"""The note of a return: it counts for the state that it speaks of, and for no other."""

from dataclasses import replace

import pytest
from etils import epath

from gemma_train.errors import UserError
from gemma_train.training.claim import claim
from gemma_train.training.position import Position, position_after, write_return

SAVED, BACK = Position(next_row=12), Position(next_row=32, returns=1)


@pytest.fixture
def checkpoints(tmp_path) -> epath.Path:
    return epath.Path(tmp_path) / "checkpoints"


def test_without_a_note_a_run_goes_on_as_it_was_saved(checkpoints):
    assert position_after(checkpoints, 3, SAVED) == SAVED
    assert not checkpoints.exists(), "looking makes nothing"


@pytest.mark.parametrize("step", [0, 3])
def test_the_note_counts_while_no_later_checkpoint_does(checkpoints, step):
    write_return(checkpoints, step, BACK)
    assert position_after(checkpoints, step, SAVED) == BACK
    assert position_after(checkpoints, step + 3, SAVED) == SAVED
    assert position_after(checkpoints, step, SAVED) == BACK, "the later one was damaged"


def test_a_note_of_a_checkpoint_that_was_passed_over_is_none_of_what_comes_in_its_place(
    checkpoints,
):
    write_return(checkpoints, 6, BACK)
    assert position_after(checkpoints, 3, SAVED) == SAVED
    assert position_after(checkpoints, 6, SAVED) == SAVED


def test_a_note_of_no_checkpoint_is_of_the_run_that_wrote_it(tmp_path, run_on):
    """Another run in its folder, which nothing was saved in, begins with its own first row."""
    config = run_on(folder=str(tmp_path))
    claim(config, begun=False)
    write_return(epath.Path(tmp_path) / "checkpoints", 0, BACK)
    claim(replace(config, checkpoint_every_steps=7), begun=False)
    assert position_after(epath.Path(tmp_path) / "checkpoints", 0, Position()) == BACK
    claim(replace(config, seed=config.seed + 1), begun=False)
    assert position_after(epath.Path(tmp_path) / "checkpoints", 0, Position()) == Position()


def test_a_damaged_note_is_one_clear_line(checkpoints):
    write_return(checkpoints, 3, BACK)
    note = checkpoints / "return.json"
    note.write_text(note.read_text().replace("32", '"32"'))
    with pytest.raises(UserError, match=r"return.json' is garbled .*: remove it to go on"):
        position_after(checkpoints, 3, SAVED)
