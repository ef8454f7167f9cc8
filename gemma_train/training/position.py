"""Where a run stands in its data, and the note of a return for bad steps.

    checkpoints/return.json   after which step it went on, with which row, after how many returns

A return overwrites no checkpoint, and is not in one before the next save: a run that ends sooner
goes on as the note says. It lies with the checkpoints, and goes where they go.
"""

from dataclasses import dataclass

import msgspec
from etils import epath

from gemma_train import sidecar
from gemma_train.agreement import of_leader
from gemma_train.run_files import RETURN
from gemma_train.sidecar import Count

FORMAT_VERSION = 1
_CURE = "remove it to go on with the rows that the newest checkpoint tells"


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands, beside its state."""

    next_row: Count = 0  # of the training stream: rows that were passed over are behind it
    returns: Count = 0  # how often it went back to a checkpoint for bad steps


@dataclass(frozen=True, kw_only=True)
class Return:
    """The last return of a run: it counts while the state after `step` is the newest."""

    step: Count  # 0 where there was no checkpoint
    position: Position


def write_return(checkpoints: epath.Path, step: int, position: Position) -> None:
    """Note that the run goes on from here: for the one process that writes."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    sidecar.write(checkpoints / RETURN, Return(step=step, position=position), FORMAT_VERSION)


def position_after(checkpoints: epath.Path, step: int, saved: Position) -> Position:
    """Where a run goes on that begins a life with the state after `step`: by the note, or `saved`.

    All processes come. Raises `UserError` on each where the note is damaged.
    """

    def found() -> str:
        return msgspec.json.encode(_found(checkpoints / RETURN, step, saved)).decode()

    return msgspec.json.decode(of_leader(found), type=Position)


def _found(note: epath.Path, step: int, saved: Position) -> Position:
    if not note.exists():
        return saved
    told = sidecar.read(note, Return, FORMAT_VERSION, _CURE)
    if told.step > step:  # that state was passed over: it is not the one that comes in its place
        note.unlink()
    return told.position if told.step == step else saved
