"""Checkpoints of a run: state, data position and config, written by orbax while training goes on."""

import logging

import jax
from orbax.checkpoint import v1 as ocp

from gemma_train import storage
from gemma_train.config import RunConfig, record
from gemma_train.errors import UserError, require
from gemma_train.training.state import TrainState, by_path, from_paths

FOLDER = "checkpoints"
STATE = "state"

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax and grain narrate every save


class Checkpoints:
    """The checkpoints in a run's folder. Saving is asynchronous; `close` waits for the last."""

    def __init__(self, config: RunConfig):
        self._config = config
        self._folder = storage.path(config.folder).absolute() / FOLDER
        self._checkpointer = ocp.training.Checkpointer(
            self._folder,
            preservation_policy=ocp.training.preservation_policies.LatestN(
                config.checkpoints_kept
            ),
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

    def restore(self, like: TrainState) -> tuple[TrainState, int]:
        """The newest checkpoint in the shapes, dtypes and shardings of `like`, and its next row."""
        step = self.latest_step
        wanted = by_path(like)
        try:
            found = self._checkpointer.load_checkpointables(step, {STATE: wanted})[STATE]
            metadata = self._checkpointer.checkpointables_metadata(step).custom_metadata
        except Exception as error:
            line = str(error).splitlines()[0]
            raise UserError(
                f"checkpoint {self._folder / str(step)} cannot be read: {line}; "
                "remove that folder to go on from the one before"
            ) from error
        return from_paths(found, like), int(metadata["next_row"])

    def close(self) -> None:
        self.wait()
        self._checkpointer.close()
