"""A run opened: its mesh, data, teacher and folder, and the state that it goes on from."""

from collections.abc import Callable
from functools import cache
from typing import TypeGuard

import jax

from gemma_train.config import RunConfig
from gemma_train.conversion.load import open_beginning, open_weights
from gemma_train.conversion.tensors import Weights
from gemma_train.data.images.store import Head
from gemma_train.data.pipeline import check
from gemma_train.drift import accepts
from gemma_train.errors import asked_by
from gemma_train.mesh import make_mesh
from gemma_train.teachers.identity import check_teacher, keep_teacher
from gemma_train.teachers.online import load_teacher, open_teacher, told
from gemma_train.teachers.stored import open_store
from gemma_train.training.checkpoint import Checkpoints, Start
from gemma_train.training.claim import claim, keep_tokenizer, only_writer
from gemma_train.training.images import check_beginning, keep_encoder, store_head
from gemma_train.training.loop import Loop, Outcome
from gemma_train.training.maintenance import MaintenanceNotice
from gemma_train.training.position import Position
from gemma_train.training.state import (
    TrainState,
    check_moments,
    imported_state,
    initial_state,
)
from gemma_train.training.stop import StopRequest, stopping_for
from gemma_train.training.watchdog import Watchdog


def train(config: RunConfig, say: Callable[[str], None] = print) -> Outcome:
    """Run `config` from its newest whole checkpoint, or from the start, to its last step or Ctrl-C.

    The runtime has started. `say` is told of the teacher that the run learns from, and of damaged
    checkpoints. Raises `UserError` for a mesh, folder, data or teacher that do not fit,
    `Unrecoverable` where bad steps do not end, and `FaultyHardware` where a replay or what is
    restored differs.
    """
    taught_by = open_teacher(config)
    mesh = make_mesh(config.mesh)
    check(config.data, config.model.vocabulary)
    store, head = open_store(config, say), store_head(config)
    if taught_by is not None:
        say(told(config, taught_by))
    with (
        StopRequest() as stop,
        MaintenanceNotice(stopping_for(say)),
        Watchdog(config.watchdog_minutes, config.folder, process=jax.process_index()) as watchdog,
        only_writer(config.folder),
        jax.set_mesh(mesh),
        Checkpoints(config, say) as checkpoints,
    ):
        saved = checkpoints.newest_whole()
        begun = saved is not None

        @cache
        def beginning() -> Weights | None:
            return _weights(config, begun=begun)

        weights = None if _is_of_state(saved) else beginning()
        check_beginning(weights, head)
        check_moments(config, weights)
        accepted = _claimed(config, taught_by, head, begun=begun)

        def after(step: int | None) -> Start:
            if _is_of_state(step):
                return checkpoints.restore(step)
            return Start(state=_first_state(config, beginning()), position=Position())

        start = after(saved)
        if saved is not None:
            checkpoints.go_on_from(saved)
        loop = Loop(
            config=config,
            mesh=mesh,
            checkpoints=checkpoints,
            stop=stop,
            watchdog=watchdog,
            after=after,
            teacher=load_teacher(config, taught_by),
            store=store,
            state=start.state,
            position=checkpoints.position_after(saved, start.position),
        )
        return loop.run([*dict.fromkeys((*accepted, *start.differs))])


def _claimed(
    config: RunConfig, taught_by: Weights | None, head: Head | None, *, begun: bool
) -> list[str]:
    """The folder made this run's, with its tokenizer and who taught it; returns accepted changes.

    Raises `UserError` where it was `begun` by another config, tokenizer, teacher or encoder.
    """
    is_same = begun and not accepts(config.accepted_changes, "loss.teacher.weights")
    if is_same:
        check_teacher(config, taught_by)
    accepted = [f"accepted: {change}" for change in claim(config, begun=begun)]
    keep_tokenizer(config, begun=begun)
    keep_teacher(config, taught_by, begun=is_same)
    keep_encoder(config, head, begun=begun)
    return accepted


def _is_of_state(saved: int | None) -> TypeGuard[int]:
    """Whether a checkpoint is there that training saved: `convert`'s, of weights, is of step 0."""
    return saved is not None and saved > 0


def _weights(config: RunConfig, *, begun: bool) -> Weights | None:
    """What the run begins from, opened but not read; a run made by `convert` has it at step 0."""
    if begun:
        with asked_by("folder"):
            return open_weights(config.folder, config.model)
    with asked_by("initial_weights"):
        source = config.initial_weights
        return open_beginning(source, config.model) if source else None


def _first_state(config: RunConfig, weights: Weights | None) -> TrainState:
    """Imported, or drawn from the seed."""
    return initial_state(config) if weights is None else imported_state(config, weights)
