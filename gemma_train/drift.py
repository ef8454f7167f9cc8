"""What may differ between a run and its resumption, and what tells configs apart beyond."""

from dataclasses import fields, is_dataclass
from typing import Any

from gemma_train.losses.distillation import Stored

# Nothing here changes what is learned, but by rounding. So may the `weights` of a store's teacher
# differ: a store knows it by its parameters, wherever they lie.
RESUMABLE_CHANGES = {
    "folder",
    "mesh",
    "accumulation",  # fewer replicas take the same batch in more parts
    "evaluation",
    "checkpoint_every_steps",
    "checkpoints_kept",
    "watchdog_minutes",
    "replay_every_steps",
    "accepted_changes",
    "tensorboard",
    "compute.remat",
    "compute.saved",
    "compute.offloaded",
    "compute.scan_neighbours",
    "loss.chunk",
    "loss.teacher.folder",
    "loss.teacher.sharding",
    "loss.teacher.step",  # that it is the same teacher's is looked at where it is opened
    "data.images.store",  # embeddings are known by their images, stores by their encoder
    "data.read_threads",
    "data.prefetch_batches",
    "data.worker_processes",
    "data.timeout_minutes",
    # A run that met a damaged file is to go on without its rows. That does change what is learned,
    # by the rows that are gone, and is asked for by name; every other row stays in its place.
    "data.damaged",
}


def differences(recorded: Any, asked: Any, name: str = "") -> dict[str, str]:
    """What tells configs apart beyond `RESUMABLE_CHANGES`, by field: 'field was old, is new'."""
    if recorded == asked or name in RESUMABLE_CHANGES:
        return {}
    if type(recorded) is type(asked) and is_dataclass(asked):
        return {
            field: line
            for one in (one.name for one in fields(asked))
            if not (isinstance(asked, Stored) and one == "weights")
            for field, line in differences(
                getattr(recorded, one), getattr(asked, one), f"{name}.{one}".lstrip(".")
            ).items()
        }
    return {name: f"{name} was {recorded!r}, is {asked!r}"}


def accepts(accepted: tuple[str, ...], field: str) -> bool:
    """Whether a change of a field, such as `optimizer.peak_lr`, is among those named, or within."""
    return any(field == one or field.startswith(f"{one}.") for one in accepted)
