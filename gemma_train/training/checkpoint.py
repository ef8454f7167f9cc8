"""A run's checkpoints as it trains: saved beside the loop, sealed, restored and compared.

What a checkpoint holds: the state, and beside it the position in the data, the config, what it was
computed with, and the state's digest, which what is restored is held to.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import jax
import msgspec
import tenacity
from etils import epath
from orbax.checkpoint import v1 as ocp

from gemma_train.agreement import by_all, of_all, of_leader
from gemma_train.checkpoints.folder import CheckpointFolder
from gemma_train.checkpoints.packing import PLACES, pack
from gemma_train.checkpoints.seal import seal
from gemma_train.config import RunConfig, record, recorded
from gemma_train.conversion import orbax_arrays
from gemma_train.drift import differences
from gemma_train.errors import Damaged, FaultyHardware, Stalled, UserError
from gemma_train.guard import Guard
from gemma_train.leaves import by_path, from_paths
from gemma_train.mesh import is_leader
from gemma_train.run_files import STATE
from gemma_train.training.digest import digest
from gemma_train.training.position import Position, position_after, write_return
from gemma_train.training.state import TrainState, abstract_state
from gemma_train.training.versions import changes_since, versions

_LOOKED_AT = 100  # checkpoints, the newest ones, for one that is whole
_TRIES = 5  # of the last save of a life, whose failure would lose steps
_LONGEST_WAIT = 30.0  # seconds between them


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What was saved beside a state, as far as a run goes by it."""

    position: Position
    config: str  # as `record` writes it
    digest: str
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run goes on from, or begins with."""

    state: TrainState
    position: Position
    differs: tuple[str, ...] = ()  # in words, what is not as it was when this was saved


class Checkpoints:
    """The checkpoints in a run's folder, for the processes of its one run.

    A new one clears away what a crash left half done. Saving is asynchronous; one that fails on any
    process is told of and tried again, while training goes on. All processes come to every call.
    """

    def __init__(self, config: RunConfig, say: Callable[[str], None] = print):
        self._config, self._say = config, say
        self._folder = CheckpointFolder(config.folder)
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._alone = jax.process_count() == 1
        self._begun: int | None = None  # the step of the save under way
        self._saving: Future[str] | None = None  # what goes wrong in it here, in a line
        self._saved: int | None = None  # the step of the last save that did not fail
        self._failures = self._again_at = 0
        of_leader(self._folder.clear_unfinished)

    def newest_whole(self) -> int | None:
        """The newest step whose files are as they were sealed; None where none was ever saved.

        Raises `Damaged` where checkpoints are there and none is whole, and `UserError` where that
        cannot be told.
        """
        self.wait()
        listed = of_leader(lambda: " ".join(map(str, self._folder.steps[-_LOOKED_AT:])))
        return self._folder.newest_whole(self._say, _found_by_all, [*map(int, listed.split())])

    def go_on_from(self, step: int) -> None:
        """Move what is newer than `step`, which was passed over, out of the way."""
        of_leader(partial(self._folder.set_aside_after, step))
        self._saved = step

    def restore(self, step: int) -> Start:
        """The checkpoint of a step, on the mesh in force; the guard of another config begins anew.

        Raises `Damaged` where it cannot be read, and `FaultyHardware` where what was read is not
        the state that was saved.
        """
        place = self._folder.checkpoint(step)
        state, kept = by_all(partial(read, place, abstract_state(self._config)))
        if (found := digest(state)) != kept.digest:
            raise FaultyHardware(
                f"checkpoint {place} was restored as {found}, and saved as {kept.digest}: its "
                "files are as they were sealed, so suspect this machine; if another one finds the "
                "same, move that folder away"
            )
        differs = config_changes(kept.config, self._config)
        if differs:
            state = replace(state, guard=jax.jit(Guard.anew)(state.guard))
        if other := changes_since(kept.versions):
            differs += (f"computed with other versions than before ({other}): bits may differ",)
        return Start(state=state, position=kept.position, differs=differs)

    def position_after(self, step: int | None, saved: Position) -> Position:
        """Where a life goes on that begins after `step`: as `saved`, or as a return has left it."""
        return position_after(self._folder.path, step or 0, saved)

    def keep_return(self, step: int | None, position: Position) -> None:
        """Keep where the run goes on that went back to `step`'s checkpoint, or to its beginning."""
        write = partial(write_return, self._folder.path, step or 0, position)
        if line := _all_well(_tried(write) if is_leader() else ""):
            self._say(f"a return could not be kept ({line}): the next save does, a stop forgets it")

    def are_due(self, step: int) -> bool:
        """Whether to save after `step`: at the config's pace, and sooner after one that failed.

        Of many processes, all know of a failure at the next save only.
        """
        if self._alone and self._saving is not None and self._saving.done():
            self.wait()
        regular = step % self._config.checkpoint_every_steps == 0
        return regular or (self._alone and self._failures > 0 and step >= self._again_at)

    def save(self, step: int, state: TrainState, position: Position) -> None:
        """Begin to save the state after `step` steps; a save still under way is finished first."""
        self.wait()
        if marked := self._mark(step):
            self._failed(step, marked)
            return
        self._begun = step
        try:
            self._saving = self._begin(step, state, position)
        except Exception as error:
            self._saving = Future()
            self._saving.set_result(_line(error))

    def wait(self) -> None:
        """Until the save under way is finished; one that failed is told of."""
        if self._begun is None or self._saving is None:
            return
        step, error = self._begun, _all_well(self._saving.result())
        self._begun = self._saving = None
        if error:
            self._failed(step, error)
        else:
            self._saved, self._failures = step, 0

    def finish(self, step: int, state: TrainState, position: Position) -> None:
        """See to it that the state after `step` is saved. Raises `Stalled` where it cannot be."""
        self.wait()
        tries = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(_TRIES),
            wait=tenacity.wait_exponential(1.0, _LONGEST_WAIT),
            retry=tenacity.retry_if_result(lambda saved: saved != step),
            retry_error_callback=lambda tried: None,
        )

        def saved() -> int | None:
            if self._saved != step:
                self.save(step, state, position)
                self.wait()
            return self._saved

        if tries(saved) != step:
            raise Stalled(
                f"checkpoint {step} cannot be saved in {self._folder.path}: make room, or see to "
                f"the storage; the same command goes on from checkpoint {self._saved or 0}"
            )
        of_all("finished")
        if is_leader():
            self._thin_out()

    def _mark(self, step: int) -> str:
        """Mark every process's part of a save as unfinished; what goes wrong on any, in a line.

        What a save before it has left is gone by then.
        """
        if self._failures:
            cleared = _tried(self._folder.clear_unfinished) if is_leader() else ""
            if line := _all_well(cleared):
                return line
        return _all_well(_tried(partial(self._folder.mark, step, jax.process_index())))

    def _begin(self, step: int, state: TrainState, position: Position) -> "Future[str]":
        beside = {
            "position": asdict(position),
            "config": record(self._config),
            "versions": versions(),
            "digest": digest(state),
        }
        leaves, beside[PLACES] = pack(by_path(state))
        with ocp.Context(array_options=orbax_arrays.PLAIN):
            begun = ocp.save_checkpointables_async(
                self._folder.checkpoint(step), {STATE: leaves}, custom_metadata=beside
            )
        return self._thread.submit(self._end, step, begun)

    def _end(self, step: int, begun: Any) -> str:
        """What goes on beside the loop: the rest of the save, the seal, the end of the mark."""
        try:
            begun.result()
            process = jax.process_index()
            seal(self._folder.checkpoint(step), process, jax.process_count())
            self._folder.unmark(step, process)
        except Exception as error:
            if self._alone:  # what it has written may be what fills the disk
                with suppress(Exception):
                    self._folder.clear_unfinished()
            return _line(error)
        if is_leader():
            self._thin_out()
        return ""

    def _thin_out(self) -> None:
        try:
            self._folder.thin_out(self._config.checkpoints_kept)
        except Exception as error:
            self._say(f"old checkpoints could not be removed: {_line(error)}")

    def _failed(self, step: int, line: str) -> None:
        self._failures += 1
        self._again_at = step + min(2**self._failures, self._config.checkpoint_every_steps)
        self._say(f"checkpoint {step} could not be saved ({line}): training goes on, it is retried")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for the save under way, unless the end is at once: its mark then stays."""
        self._thread.shutdown(wait=error is None or isinstance(error, Exception))


def read[Tree](place: epath.Path, like: Tree) -> tuple[Tree, Kept]:
    """A checkpoint's leaves, in the shapes and places that `like` has, and what is beside them.

    Raises `Damaged` where anything of it cannot be read, and `Stalled` where that may pass.
    """
    try:
        leaves = orbax_arrays.load(place, by_path(like))
        return from_paths(leaves, like), kept_in(orbax_arrays.metadata(place))
    except Stalled:
        raise
    except UserError as error:
        told = str(error)
        if str(place) not in told:
            told = f"checkpoint {place} cannot be read: {told}"
        raise Damaged(
            f"{told}; if it is damaged, move that folder away to go on from the one before"
        ) from error


def kept_in(metadata: Mapping[str, Any]) -> Kept:
    """What a checkpoint's metadata tell. Raises `Damaged` where they do not."""
    try:
        return msgspec.convert(metadata, Kept)
    except (msgspec.ValidationError, UnicodeError) as error:
        raise Damaged(f"what is beside its state is garbled ({error})") from None


def config_changes(saved: str, config: RunConfig) -> tuple[str, ...]:
    """How a config differs from the one that a checkpoint was saved with, which has been accepted.

    That one need not be one any more: another version of the code may have other fields.
    """
    try:
        there = recorded(saved, "what the checkpoint tells", RunConfig)
    except UserError as error:
        return (f"saved with a config of another version: {error}",)
    return tuple(f"accepted: {line}" for line in differences(there, config).values())


def _found_by_all(damage: Callable[[slice], str]) -> str:
    """The first finding of all processes, each of which reads its share of the files."""
    share = slice(jax.process_index(), None, jax.process_count())
    return _all_well(by_all(partial(damage, share)))


def _all_well(line: str) -> str:
    """What went wrong on any process; "" where nothing did on all."""
    return next(filter(None, of_all(line)), "")


def _tried(function: Callable[[], None]) -> str:
    """What goes wrong in it, in a line."""
    try:
        function()
    except Exception as error:
        return _line(error)
    return ""


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
