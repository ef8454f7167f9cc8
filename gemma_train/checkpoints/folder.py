"""Which checkpoints a run has, which of them are whole, and which may go.

    checkpoints/500                 a checkpoint after 500 steps, sealed
    checkpoints/1000.unfinished-0   process 0 is writing, or removing, checkpoint 1000
    checkpoints/750.damaged         one that did not verify, moved out of the way

Marks of the unfinished are removed after the seals are written: what a kill leaves behind bears
one and is cleared away, while a checkpoint without a mark was whole once.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from etils import epath

from gemma_train import storage
from gemma_train.checkpoints.seal import SIZES_ALONE, damage
from gemma_train.errors import Damaged
from gemma_train.run_files import CHECKPOINTS

_STEP = re.compile(r"0|[1-9]\d{0,17}")
_MARK = re.compile(rf"({_STEP.pattern})\.unfinished-\d+")
_TEMPORARY = ".orbax-checkpoint-tmp"  # in the names of what Orbax has not committed
_DAMAGED = ".damaged"


class CheckpointFolder:
    """The checkpoints of the run in `run`. Looking changes nothing, and needs no folder."""

    def __init__(self, run: str | epath.Path):
        self.path = storage.path(str(run)).absolute() / CHECKPOINTS

    @property
    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, rising: whole ones, and such as were whole once."""
        names = self._names()
        unfinished = {match[1] for name in names if (match := _MARK.fullmatch(name))}
        return sorted(int(n) for n in names if _STEP.fullmatch(n) and n not in unfinished)

    @property
    def unfinished(self) -> list[str]:
        """Names of what is being written or removed now, or was when a process was killed."""
        return sorted(name for name in self._names() if _TEMPORARY in name or _MARK.fullmatch(name))

    @property
    def set_aside(self) -> list[str]:
        """Names of those that were moved out of the way."""
        return sorted(name for name in self._names() if _DAMAGED in name)

    def checkpoint(self, step: int) -> epath.Path:
        """Where the checkpoint of a step is, or would be."""
        return self.path / str(step)

    def newest_whole(
        self,
        tell: Callable[[str], None],
        agreed: Callable[[Callable[[slice], str]], str] = lambda damage: damage(slice(None)),
        steps: Sequence[int] | None = None,
    ) -> int | None:
        """The newest step whose files are all as they were sealed; None where none was ever saved.

        `tell` hears of every newer one that is passed over. Of many processes, `agreed` calls what
        it is given with this one's share of the files, and gives all the first finding; `steps`
        are then those that one of them has listed. Raises `Damaged` where checkpoints are there
        and none is whole: nothing starts over their heads.
        """
        found = ""
        for step in reversed(self.steps if steps is None else steps):
            checkpoint = self.checkpoint(step)
            found = agreed(partial(damage, checkpoint))
            if not found:
                return step
            if steps is None and step not in self.steps:  # the run, which goes on, has removed it
                return self.newest_whole(tell, agreed)
            tell(f"checkpoint {step} is damaged ({found}): looking for an earlier one")
        if found or self.set_aside:
            raise Damaged(
                f"{self.path} holds no whole checkpoint ({found or ', '.join(self.set_aside)}): "
                "bring one back, or remove that folder to begin anew"
            )
        return None

    def mark(self, step: int, process: int = 0) -> None:
        """Say that this process begins to write or to remove a checkpoint."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._mark(step, process).write_bytes(b"")

    def unmark(self, step: int, process: int = 0) -> None:
        """Say that it is done."""
        self._mark(step, process).unlink()

    def set_aside_after(self, step: int | None) -> None:
        """Move all that is newer than `step` out of the way, for somebody to look at."""
        for newer in [one for one in self.steps if step is None or one > step]:
            place, number = f"{newer}{_DAMAGED}", 1
            while (self.path / place).exists():
                number += 1
                place = f"{newer}{_DAMAGED}-{number}"
            self.checkpoint(newer).rename(self.path / place)

    def remove(self, step: int) -> None:
        """Remove a checkpoint so that a kill in the middle leaves none that seems finished."""
        self.mark(step)
        self.checkpoint(step).rmtree()
        self.unmark(step)

    def thin_out(self, kept: int) -> list[int]:
        """Remove all but the newest `kept` sealed ones; returns the steps removed.

        One whose seals or files' sizes are not as they were does not count as kept, and stays.
        The newest was read in full when it was sealed, and is never removed.
        """
        sealed = [step for step in self.steps if not damage(self.checkpoint(step), SIZES_ALONE)]
        too_many = sealed[:-kept]
        for step in too_many:
            self.remove(step)
        return too_many

    def clear_unfinished(self) -> None:
        """Remove what a kill has left of saves and removals: for the one process that writes."""
        for name in self._names():
            if _TEMPORARY in name:
                (self.path / name).rmtree()
        for name in self._names():
            if match := _MARK.fullmatch(name):
                with suppress(FileNotFoundError):
                    self.checkpoint(int(match[1])).rmtree()
                (self.path / name).unlink()

    def _names(self) -> list[str]:
        return [child.name for child in self.path.iterdir()] if self.path.exists() else []

    def _mark(self, step: int, process: int) -> epath.Path:
        return self.path / f"{step}.unfinished-{process}"
