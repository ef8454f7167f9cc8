"""The loop: restore or start, then step, record, evaluate and save until the last step."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from gemma_train.config import RunConfig
from gemma_train.conversion.load import open_beginning, open_weights
from gemma_train.conversion.tensors import Weights
from gemma_train.data.pipeline import batches, check
from gemma_train.data.teacher_store.reading import TeacherStore
from gemma_train.errors import asked_by
from gemma_train.evaluation.captions import Answers, answers
from gemma_train.evaluation.held_out import HeldOutLoss, make_held_out_loss
from gemma_train.mesh import is_leader, make_mesh
from gemma_train.metrics.observer import Observer
from gemma_train.metrics.peak import peak_flops
from gemma_train.model import Gemma
from gemma_train.model.flops import forward_flops_per_token, training_flops_per_token
from gemma_train.placement import needed_rows, place
from gemma_train.teachers.identity import keep_teacher
from gemma_train.teachers.online import load_teacher, open_teacher, told
from gemma_train.teachers.stored import open_store
from gemma_train.tokenizer.tokenizer import Tokenizer
from gemma_train.training.checkpoint import Checkpoints
from gemma_train.training.claim import claim
from gemma_train.training.images import check_beginning, keep_encoder, store_head
from gemma_train.training.state import (
    TrainState,
    check_moments,
    imported_state,
    initial_state,
)
from gemma_train.training.step import make_step
from gemma_train.training.stop import StopRequest


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How far a run is: `state` after `step` steps, and what held-out data says of it there."""

    state: TrainState
    step: int
    held_out: HeldOutLoss | None = None
    captions: Answers | None = None


def train(config: RunConfig, say: Callable[[str], None] = print) -> Outcome:
    """Run `config` from its newest checkpoint, or from the start, to its last step or Ctrl-C.

    The runtime has started. `say` is told of the teacher that the run learns from. Raises
    `UserError` for a mesh, folder, data or teacher that do not fit.
    """
    taught_by = open_teacher(config)
    mesh = make_mesh(config.mesh)
    check(config.data, config.model.vocabulary)
    store, head = open_store(config, say), store_head(config)
    if taught_by is not None:
        say(told(config, taught_by))
    with jax.set_mesh(mesh), Checkpoints(config) as checkpoints:
        saved = checkpoints.latest_step
        weights = None if saved else _weights(config, begun=saved is not None)
        check_beginning(weights, head)
        check_moments(config, weights)
        claim(config, begun=saved is not None)
        keep_teacher(config, taught_by, begun=saved is not None)
        keep_encoder(config, head, begun=saved is not None)
        if saved:
            state, next_row = checkpoints.restore()
        else:
            state, next_row = _first_state(config, weights), 0
        teacher = load_teacher(config, taught_by)
        return _loop(config, mesh, checkpoints, state, next_row, teacher, store)


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


def _loop(
    config: RunConfig,
    mesh: Mesh,
    checkpoints: Checkpoints,
    state: TrainState,
    next_row: int,
    teacher: Gemma | None,
    store: TeacherStore | None,
) -> Outcome:
    """Steps until the last; reading, recording and saving overlap with the device's work."""
    rows, number, held_out, captions = config.data.batch_rows, int(state.step), None, None
    step = make_step(config)
    evaluate = make_held_out_loss(
        config.data,
        mesh,
        chunk=config.loss.chunk,
        batch_rows=rows // config.accumulation,
        maximum_rows=config.evaluation.rows,
    )
    mine = needed_rows(mesh, rows)
    stream = batches(config.data, start_row=next_row, batch_indices=mine, teacher=store)
    with stream, StopRequest() as stop, _observer(config, mesh, number, teacher) as observer:
        stopping = False
        if number:
            observer.say(f"going on from step {number:,}")
        while number < config.steps and not stopping:
            with observer.clock.waiting_for_data():
                batch = next(stream)
            state, scalars = step(state, place(batch, mesh, rows), teacher)
            number, next_row = number + 1, next_row + rows
            observer.step(number, scalars)
            stopping = stop.agreed(number)
            last = number == config.steps
            saves = last or stopping or number % config.checkpoint_every_steps == 0
            evaluates = not last and number % config.evaluation.every_steps == 0
            if saves or evaluates:
                observer.flush()
                with observer.clock.paused():
                    if saves:
                        checkpoints.save(number, state, next_row)
                    if evaluates and config.data.held_out:
                        observer.evaluation(number, {"loss": evaluate(state.model).loss})
        if number == config.steps and config.data.held_out:
            held_out = evaluate(state.model)
            observer.evaluation(number, {"loss": held_out.loss})
            captions = _captions(config, state.model)
        checkpoints.wait()
        if number < config.steps:
            observer.say(f"stopped after step {number:,}, saved: the same command goes on from it")
    return Outcome(state=state, step=number, held_out=held_out, captions=captions)


def _captions(config: RunConfig, model: Gemma) -> Answers | None:
    """What the model says of held-out images, where the config asks for it."""
    if not config.evaluation.captions:
        return None
    eos = Tokenizer.load(config.data.tokenizer).eos
    return answers(model, config.data, most=config.evaluation.captions, stop_id=eos)


def _observer(config: RunConfig, mesh: Mesh, first: int, teacher: Gemma | None) -> Observer:
    length = config.data.sequence_length
    flops = training_flops_per_token(config.model, length)
    if teacher is not None:
        flops += forward_flops_per_token(teacher.config, length)
    return Observer(
        config.folder,
        start_step=first,
        total_steps=config.steps,
        tokens_per_step=config.step_tokens,
        flops_per_token=flops,
        devices=mesh.size,
        device_peak=peak_flops(mesh.devices.flat[0].device_kind, config.compute.dtype),
        tensorboard=config.tensorboard,
        active=is_leader(),
    )
