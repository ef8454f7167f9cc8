"""A run's checkpoints as it trains: saved beside the loop, sealed, restored and compared.

What a checkpoint holds: the state, and beside it the position in the data, the config, what it was
computed with, and the state's digest, which what is restored is held to.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

import jax
import tenacity
from orbax.checkpoint import v1 as ocp

from gemma_train.checkpoints.folder import CheckpointFolder
from gemma_train.checkpoints.seal import seal
from gemma_train.config import RunConfig, record
from gemma_train.errors import Damaged, UserError
from gemma_train.leaves import by_path, from_paths
from gemma_train.mesh import is_leader, of_all
from gemma_train.run_files import STATE
from gemma_train.training.digest import digest
from gemma_train.training.state import TrainState, abstract_state
from gemma_train.training.versions import drift, versions

logging.getLogger("absl").setLevel(logging.CRITICAL)  # what orbax logs it also raises

_TRIES = 5  # of the last save of a life, whose failure would lose steps
_LONGEST_WAIT = 30.0  # seconds between them


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands, beside its state."""

    next_row: int = 0  # of the training stream: rows that were passed over are behind it
    returns: int = 0  # how often it went back to a checkpoint for bad steps


class Checkpoints:
    """The checkpoints in a run's folder, for the processes of its one run.

    A new one clears away what a crash left half done. Saving is asynchronous; one that fails is
    told of and tried again, while training goes on.
    """

    def __init__(self, config: RunConfig, say: Callable[[str], None] = print):
        self._config, self._say = config, say
        self._folder = CheckpointFolder(config.folder)
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._saving: tuple[int, Future] | None = None
        self._saved: int | None = None  # the step of the last save that did not fail
        self._failures = self._again_at = 0
        if is_leader():
            self._folder.clear_unfinished()
        of_all("cleared")

    def newest_whole(self) -> int | None:
        """The newest step whose files are as they were sealed; None where none was ever saved.

        Raises `Damaged` where checkpoints are there and none is whole.
        """
        self.wait()
        return self._folder.newest_whole(self._say, _found_by_all)

    def restore(self, step: int) -> tuple[TrainState, Position]:
        """The checkpoint of a step, on the mesh in force; newer ones are moved out of the way.

        Raises `Damaged` where it cannot be read, or is not the state that was saved.
        """
        like, place = abstract_state(self._config), self._folder.checkpoint(step)
        try:
            wanted = {STATE: by_path(like)}
            state = from_paths(ocp.load_checkpointables(place, wanted)[STATE], like)
            kept: Any = ocp.checkpointables_metadata(place).custom_metadata
            position = Position(**kept["position"])
        except Exception as error:
            raise Damaged(
                f"checkpoint {place} cannot be read: {_line(error)}; if it is damaged, move that "
                "folder away to go on from the one before"
            ) from error
        found = digest(state)
        if found != kept["digest"]:
            raise Damaged(
                f"checkpoint {place} was restored as {found}, and saved as {kept['digest']}: its "
                "files are as they were sealed, so suspect this machine, or move that folder away"
            )
        if changed := drift(kept["versions"]):
            self._say(f"computed with other versions than before ({changed}): bits may differ")
        if is_leader():
            self._folder.set_aside_after(step)
        of_all("set aside")
        self._saved = step
        return state, position

    def are_due(self, step: int) -> bool:
        """Whether to save after `step`: at the config's pace, and sooner after one that failed."""
        if self._saving is not None and self._saving[1].done():
            self.wait()
        regular = step % self._config.checkpoint_every_steps == 0
        alone = jax.process_count() == 1  # of many, all must come to a save
        return regular or (alone and self._failures > 0 and step >= self._again_at)

    def save(self, step: int, state: TrainState, position: Position) -> None:
        """Begin to save the state after `step` steps; a save still under way is finished first."""
        self.wait()
        if self._failures and is_leader():
            self._folder.clear_unfinished()
        try:
            self._begin(step, state, position)
        except Exception as error:
            self._failed(step, error)

    def wait(self) -> None:
        """Until the save under way is finished; one that failed is told of."""
        if self._saving is None:
            return
        (step, saving), self._saving = self._saving, None
        try:
            saving.result()
            self._saved, self._failures = step, 0
        except Exception as error:
            self._failed(step, error)

    def finish(self, step: int, state: TrainState, position: Position) -> None:
        """See to it that the state after `step` is saved. Raises `UserError` where it cannot be."""
        self.wait()
        tries = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(_TRIES if jax.process_count() == 1 else 1),
            wait=tenacity.wait_random_exponential(1.0, _LONGEST_WAIT),
            retry=tenacity.retry_if_result(lambda saved: saved != step),
            retry_error_callback=lambda tried: None,
        )

        def saved() -> int | None:
            if self._saved != step:
                self.save(step, state, position)
                self.wait()
            return self._saved

        if tries(saved) != step:
            raise UserError(
                f"checkpoint {step} cannot be saved in {self._folder.path}: make room, or see to "
                f"the storage; the same command goes on from checkpoint {self._saved or 0}"
            )
        of_all("finished")
        if is_leader():
            self._folder.thin_out(self._config.checkpoints_kept)

    def close(self) -> None:
        """Finish the save under way and let go."""
        self.wait()
        self._thread.shutdown()

    def _begin(self, step: int, state: TrainState, position: Position) -> None:
        beside = {
            "position": asdict(position),
            "config": record(self._config),
            "versions": versions(),
            "digest": digest(state),
        }
        self._folder.mark(step, jax.process_index())
        place = self._folder.checkpoint(step)
        begun = ocp.save_checkpointables_async(
            place, {STATE: by_path(state)}, custom_metadata=beside
        )
        self._saving = step, self._thread.submit(self._end, step, begun)

    def _end(self, step: int, begun: Any) -> None:
        begun.result()
        process = jax.process_index()
        seal(self._folder.checkpoint(step), process, jax.process_count())
        self._folder.unmark(step, process)
        if is_leader():
            self._folder.thin_out(self._config.checkpoints_kept)

    def _failed(self, step: int, error: Exception) -> None:
        self._failures += 1
        wait = min(2**self._failures, self._config.checkpoint_every_steps)
        self._again_at = step + wait
        self._say(
            f"checkpoint {step} could not be saved ({_line(error)}): training goes on, and it is "
            "tried again"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _found_by_all(find: Callable[[slice], str]) -> str:
    """The first finding of all processes, each of which reads its share of the files."""
    here, count = jax.process_index(), jax.process_count()
    return next(filter(None, of_all(find(slice(here, None, count)))), "")


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
