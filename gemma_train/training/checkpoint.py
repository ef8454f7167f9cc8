"""Checkpoints of a run: state, data position and config, written while training goes on."""

import logging
from types import TracebackType
from typing import Any, Self

from orbax.checkpoint import v1 as ocp

from gemma_train import storage
from gemma_train.config import RunConfig, record
from gemma_train.errors import UserError, require
from gemma_train.leaves import by_path, from_paths
from gemma_train.run_files import CHECKPOINTS, STATE
from gemma_train.training.state import TrainState, abstract_state

logging.getLogger("absl").setLevel(logging.CRITICAL)  # what orbax logs it also raises


class Checkpoints:
    """The checkpoints in a run's folder. Saving is asynchronous; `close` waits for the last.

    A new one clears away saves that a crash left half done.
    """

    def __init__(self, config: RunConfig):
        self._config = config
        self._folder = storage.path(config.folder).absolute() / CHECKPOINTS
        self._checkpointer = ocp.training.Checkpointer(
            self._folder,
            preservation_policy=ocp.training.preservation_policies.LatestN(config.checkpoints_kept),
            cleanup_tmp_directories=True,
        )
        self._saving = None

    @property
    def latest_step(self) -> int | None:
        """The newest finished checkpoint's step."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: TrainState, next_row: int) -> None:
        """Start saving the state after `step` steps; a save still under way is finished first."""
        self.wait()
        self._saving = self._checkpointer.save_checkpointables_async(
            step,
            {STATE: by_path(state)},
            custom_metadata={"next_row": next_row, "config": record(self._config)},
        )
        require(
            self._saving is not None,
            f"checkpoint {step} was not begun: {self._folder} holds a newer one",
        )

    def wait(self) -> None:
        """Until the save under way is finished. Raises what went wrong in it."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            saving.result()

    def restore(self) -> tuple[TrainState, int]:
        """The newest checkpoint's state on the mesh in force, and its next row."""
        like = abstract_state(self._config)
        found, metadata = self._load(by_path(like))
        return from_paths(found, like), int(metadata["next_row"])

    def _load(self, wanted: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        """The newest step's leaves, all of which are wanted, and what was saved beside them."""
        step = self.latest_step
        try:
            found = self._checkpointer.load_checkpointables(step, {STATE: wanted})[STATE]
            metadata = self._checkpointer.checkpointables_metadata(step).custom_metadata
        except Exception as error:
            line = str(error).splitlines()[0]
            raise UserError(
                f"checkpoint {self._folder / str(step)} cannot be read: {line}; "
                "if it is damaged, move that folder away to go on from the one before"
            ) from error
        return found, metadata

    def close(self) -> None:
        """Finish the save under way and let go."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
