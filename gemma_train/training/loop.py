"""The loop: step, record, evaluate and save until the last step, a stop, or too many bad steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jax.sharding import Mesh

from gemma_train.config import RunConfig
from gemma_train.data.batching import Batches
from gemma_train.data.example import Batch
from gemma_train.data.pipeline import batches
from gemma_train.data.teacher_store.reading import TeacherStore
from gemma_train.errors import Unrecoverable
from gemma_train.evaluation.captions import Answers, answers
from gemma_train.evaluation.held_out import HeldOutLoss, make_held_out_loss
from gemma_train.mesh import is_leader
from gemma_train.metrics.goodput import process_start
from gemma_train.metrics.observer import Observer
from gemma_train.metrics.peak import peak_flops
from gemma_train.model import Gemma
from gemma_train.model.flops import forward_flops_per_token, training_flops_per_token
from gemma_train.placement import needed_rows, place
from gemma_train.tokenizer.tokenizer import Tokenizer
from gemma_train.training.checkpoint import Checkpoints, Start
from gemma_train.training.position import Position
from gemma_train.training.replay import replayed
from gemma_train.training.state import TrainState
from gemma_train.training.step import make_step
from gemma_train.training.stop import Stopped, StopRequest
from gemma_train.training.watchdog import Watchdog


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How far a run is: `state` after `step` steps, and what held-out data says of it there.

    One that was stopped, be it ahead of its last evaluation, is not `finished`.
    """

    state: TrainState
    step: int
    finished: bool
    held_out: HeldOutLoss | None = None
    captions: Answers | None = None


@dataclass(kw_only=True)
class Loop:
    """A run from where it stands until it is done or stopped.

    Reading, recording and saving overlap with the device's work: a step's figures are looked at
    when the next one has been sent.
    """

    config: RunConfig
    mesh: Mesh
    checkpoints: Checkpoints
    stop: StopRequest
    watchdog: Watchdog
    after: Callable[[int | None], Start]  # a checkpoint's step; None: none
    teacher: Gemma | None
    store: TeacherStore | None
    state: TrainState
    position: Position

    def __post_init__(self) -> None:
        config = self.config
        self.number = int(self.state.step)  # steps taken, those that were skipped among them
        self._stopping = self._is_bad = self._owes_save = False
        self._step = make_step(config)
        self._evaluate = make_held_out_loss(
            config.data,
            self.mesh,
            chunk=config.loss.chunk,
            batch_rows=config.data.batch_rows // config.accumulation,
            maximum_rows=config.evaluation.rows,
        )
        self._observer = _observer(config, self.mesh, self.number, self.teacher)

    def run(self, events: Sequence[str]) -> Outcome:
        """Steps until the last, and what held-out data says after it. `events`, which it begins
        with, are recorded."""
        config, observer, held_out, captions = self.config, self._observer, None, None
        with observer:
            if self.number:
                observer.say(f"going on from step {self.number:,}")
            for event in events:
                observer.event(self.number, event)
            while self.number < config.steps and not self._stopping:
                with self._stream() as stream:
                    self._take_steps(stream)
            if not self._stopping and config.data.held_out:
                held_out = self._held_out()
            if held_out is not None:
                with self.watchdog.patient(), observer.clock.paused("evaluation"):
                    captions = _captions(config, self.state.model)
            if self._stopping and self._is_bad:
                observer.say(
                    f"stopped after step {self.number:,}, in bad steps: the same command goes on "
                    "from the checkpoint before them"
                )
            elif self.number:  # else it has just gone back to its beginning: there is no state
                with self.watchdog.patient(), observer.clock.paused("checkpoint"):
                    self.checkpoints.finish(self.number, self.state, self.position)
            if self._stopping and not self._is_bad:
                observer.say(
                    f"stopped after step {self.number:,}, saved: the same command goes on from it"
                )
        return Outcome(
            state=self.state,
            step=self.number,
            finished=not self._stopping,
            held_out=held_out,
            captions=captions,
        )

    def _stream(self) -> Batches:
        return batches(
            self.config.data,
            start_row=self.position.next_row,
            batch_indices=needed_rows(self.mesh, self.config.data.batch_rows),
            teacher=self.store,
        )

    def _take_steps(self, stream: Batches) -> None:
        """Until the run is done or stopped, or has gone back to a checkpoint."""
        config, observer = self.config, self._observer
        while self.number < config.steps and not self._stopping:
            with observer.clock.waiting_for_data():
                batch = next(stream)
            line = self._take_step(batch, stream.damaged_rows)
            self._stopping = self.stop.agreed()
            if self._has_left(line):
                return
            last = self.number == config.steps
            self._owes_save |= self.checkpoints.are_due(self.number)
            saves = last or self._stopping or self._owes_save
            evaluates = not last and self.number % config.evaluation.every_steps == 0
            if not (saves or evaluates):
                continue
            line = observer.flush()
            if self._has_left(line):
                return
            self._is_bad = bool(line["skipped"])
            if saves and not self._is_bad:  # a good one is to be there to go back to
                self._owes_save = False
                with self.watchdog.patient(), observer.clock.paused("checkpoint"):
                    self.checkpoints.save(self.number, self.state, self.position)
            if evaluates and config.data.held_out and not self._stopping:
                self._held_out()

    def _take_step(self, batch: Batch, damaged_rows: int) -> dict[str, Any]:
        """One step; returns the figures of the step before."""
        rows, every = self.config.data.batch_rows, self.config.replay_every_steps
        placed, first = place(batch, self.mesh, rows), self.position.next_row
        if every and (self.number + 1) % every == 0:
            self.state, scalars = replayed(self._step, self.state, placed, self.teacher)
        else:
            self.state, scalars = self._step(self.state, placed, self.teacher)
        self.number += 1
        self.position = replace(self.position, next_row=first + rows)
        told = {"first_row": first, "damaged_rows": damaged_rows}
        finished = self._observer.step(self.number, {**scalars, **told})
        if finished:
            self.watchdog.alive(f"step {finished['step']:,}")
        return finished

    def _has_left(self, line: dict[str, Any]) -> bool:
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
        left, next_row, returns = self.number, self.position.next_row, self.position.returns + 1
        with self.watchdog.patient(), self._observer.clock.paused("restore"):
            saved = self.checkpoints.newest_whole()
            start = self.after(saved)
            self.state = start.state
            if saved is not None:
                self.checkpoints.go_on_from(saved)
            self.position = Position(next_row=next_row, returns=returns)
            self.checkpoints.keep_return(saved, self.position)
        self.number = int(self.state.step)
        self._is_bad = False
        self._observer.go_back(self.number)
        for event in start.differs:
            self._observer.event(self.number, event)
        self._observer.event(
            self.number,
            f"came back from step {left:,}, to go on with row {next_row:,} "
            f"(return {returns} of {self.config.guard.returns})",
        )

    def _held_out(self) -> HeldOutLoss | None:
        """The held-out loss, recorded; None where a stop was asked for meanwhile."""
        try:
            with self.watchdog.patient(), self._observer.clock.paused("evaluation"):
                found = self._evaluate(self.state.model, self.stop.check)
        except Stopped:
            self._stopping = True
            return None
        self._observer.evaluation(self.number, {"loss": found.loss})
        return found


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
        began=process_start(),
    )
