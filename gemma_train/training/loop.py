"""The loop: restore or start, then step, record, evaluate and save until the last step."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.sharding import Mesh

from gemma_train.config import RunConfig
from gemma_train.conversion.load import open_beginning, open_weights
from gemma_train.conversion.tensors import Weights
from gemma_train.data.batching import Batches
from gemma_train.data.pipeline import batches, check
from gemma_train.data.teacher_store.reading import TeacherStore
from gemma_train.errors import Unrecoverable, asked_by
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
from gemma_train.training.checkpoint import Checkpoints, Position
from gemma_train.training.claim import claim, only_writer
from gemma_train.training.images import check_beginning, keep_encoder, store_head
from gemma_train.training.replay import replayed
from gemma_train.training.state import (
    TrainState,
    check_moments,
    imported_state,
    initial_state,
)
from gemma_train.training.step import make_step
from gemma_train.training.stop import Stopped, StopRequest


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How far a run is: `state` after `step` steps, and what held-out data says of it there."""

    state: TrainState
    step: int
    held_out: HeldOutLoss | None = None
    captions: Answers | None = None


def train(config: RunConfig, say: Callable[[str], None] = print) -> Outcome:
    """Run `config` from its newest whole checkpoint, or from the start, to its last step or Ctrl-C.

    The runtime has started. `say` is told of the teacher that the run learns from, and of damaged
    checkpoints. Raises `UserError` for a mesh, folder, data or teacher that do not fit,
    `Unrecoverable` where bad steps do not end, and `FaultyHardware` where a replay differs.
    """
    taught_by = open_teacher(config)
    mesh = make_mesh(config.mesh)
    check(config.data, config.model.vocabulary)
    store, head = open_store(config, say), store_head(config)
    if taught_by is not None:
        say(told(config, taught_by))
    with (
        StopRequest() as stop,
        only_writer(config.folder),
        jax.set_mesh(mesh),
        Checkpoints(config, say) as checkpoints,
    ):
        saved = checkpoints.newest_whole()
        begun = saved is not None
        weights = None if saved else _weights(config, begun=begun)
        check_beginning(weights, head)
        check_moments(config, weights)
        accepted = claim(config, begun=begun)
        keep_teacher(config, taught_by, begun=begun)
        keep_encoder(config, head, begun=begun)

        def beginning() -> tuple[TrainState, Position]:
            return _first_state(config, weights), Position()

        state, position = checkpoints.restore(saved) if saved else beginning()
        life = _Life(
            config=config,
            mesh=mesh,
            checkpoints=checkpoints,
            stop=stop,
            beginning=beginning,
            teacher=load_teacher(config, taught_by),
            store=store,
            state=state,
            position=position,
            number=int(state.step),
        )
        return life.live(accepted)


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


@dataclass(kw_only=True)
class _Life:
    """A run from where it stands until it is done or stopped.

    Reading, recording and saving overlap with the device's work: a step's figures are looked at
    when the next one has been sent.
    """

    config: RunConfig
    mesh: Mesh
    checkpoints: Checkpoints
    stop: StopRequest
    beginning: Callable[[], tuple[TrainState, Position]]
    teacher: Gemma | None
    store: TeacherStore | None
    state: TrainState
    position: Position
    number: int  # steps taken, those that were skipped among them

    def live(self, accepted: list[str]) -> Outcome:
        """Steps until the last, and what held-out data says after it. `accepted` is recorded."""
        config, held_out, captions = self.config, None, None
        self._step = make_step(config)
        self._evaluate = make_held_out_loss(
            config.data,
            self.mesh,
            chunk=config.loss.chunk,
            batch_rows=config.data.batch_rows // config.accumulation,
            maximum_rows=config.evaluation.rows,
        )
        self._stopping = False
        with _observer(config, self.mesh, self.number, self.teacher) as observer:
            self._observer = observer
            if self.number:
                observer.say(f"going on from step {self.number:,}")
            for change in accepted:
                observer.event(self.number, "accepted change", what=change)
            while self.number < config.steps and not self._stopping:
                with self._stream() as stream:
                    self._go_on(stream)
            try:
                if self.number == config.steps and config.data.held_out:
                    held_out = self._held_out()
                    captions = _captions(config, self.state.model)
            except Stopped:
                self._stopping = True
            self.checkpoints.finish(self.number, self.state, self.position)
            if self._stopping:
                observer.say(
                    f"stopped after step {self.number:,}, saved: the same command goes on from it"
                )
        step = self.number if held_out or not self._stopping else min(self.number, config.steps - 1)
        return Outcome(state=self.state, step=step, held_out=held_out, captions=captions)

    def _stream(self) -> Batches:
        return batches(
            self.config.data,
            start_row=self.position.next_row,
            batch_indices=needed_rows(self.mesh, self.config.data.batch_rows),
            teacher=self.store,
        )

    def _go_on(self, stream: Batches) -> None:
        """Step through a stream until the run is done or stopped, or goes back to a checkpoint."""
        config, observer = self.config, self._observer
        while self.number < config.steps and not self._stopping:
            with observer.clock.waiting_for_data():
                batch = next(stream)
            if self._is_left_after(self._take(batch)):
                return
            self._stopping = self.stop.agreed(self.number)
            last = self.number == config.steps
            saves = last or self._stopping or self.checkpoints.are_due(self.number)
            evaluates = not last and self.number % config.evaluation.every_steps == 0
            if not (saves or evaluates):
                continue
            line = observer.flush()
            if self._is_left_after(line):
                return
            with observer.clock.paused():
                if saves and not line["skipped"]:  # a good one is to be there to go back to
                    self.checkpoints.save(self.number, self.state, self.position)
                if evaluates and config.data.held_out and not self._stopping:
                    self._held_out_between_steps()

    def _take(self, batch: Any) -> dict[str, Any]:
        """One step; returns the figures of the step before."""
        config, rows = self.config, self.config.data.batch_rows
        placed, first = place(batch, self.mesh, rows), self.position.next_row
        every = config.replay_every_steps
        if every and (self.number + 1) % every == 0:
            self.state, scalars = replayed(self._step, self.state, placed, self.teacher)
        else:
            self.state, scalars = self._step(self.state, placed, self.teacher)
        self.number += 1
        self.position = replace(self.position, next_row=first + rows)
        return self._observer.step(self.number, {**scalars, "first_row": first})

    def _is_left_after(self, line: dict[str, Any]) -> bool:
        """Whether a finished step was one bad one too many: then the run has gone back.

        Raises `Unrecoverable` where it went back as often as it may.
        """
        bad, guard = int(line.get("skipped", 0)), self.config.guard
        if not bad:
            return False
        first = int(line["first_row"])
        rows = f"rows {first:,} to {first + self.config.data.batch_rows - 1:,}"
        figures = f"loss {line['loss']:.4g}, gradient norm {line['gradient_norm']:.4g}"
        self._observer.say(f"step {line['step']:,} was skipped: {figures}, {rows}")
        if bad < guard.bad_steps:
            return False
        if self.position.returns >= guard.returns:
            raise Unrecoverable(
                f"{bad} bad steps in a row up to step {line['step']:,} ({figures}, {rows}), after "
                f"{self.position.returns} returns to a checkpoint (guard.returns): look at those "
                "rows, lower optimizer.peak_lr, or begin from an earlier checkpoint"
            )
        self._go_back()
        return True

    def _go_back(self) -> None:
        """To the newest checkpoint, whose state is good, and on with the rows that come next."""
        left, position = self.number, self.position
        saved = self.checkpoints.newest_whole()
        self.state, _ = self.checkpoints.restore(saved) if saved else self.beginning()
        self.number = saved or 0
        self.position = replace(position, returns=position.returns + 1)
        what = (
            f"back from step {left:,} to {self.number:,}, and on with row {position.next_row:,} "
            f"(return {self.position.returns} of {self.config.guard.returns})"
        )
        self._observer.went_back(self.number, what)

    def _held_out(self) -> HeldOutLoss:
        found = self._evaluate(self.state.model, self.stop.check)
        self._observer.evaluation(self.number, {"loss": found.loss})
        return found

    def _held_out_between_steps(self) -> None:
        try:
            self._held_out()
        except Stopped:
            self._stopping = True


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
