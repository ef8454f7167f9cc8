"""What a run tells the outside: its record, its progress line and the clock, in one place."""

from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from gemma_train.metrics import goodput
from gemma_train.metrics.clock import StepClock
from gemma_train.metrics.goodput import Goodput
from gemma_train.metrics.peak import model_flops_utilization
from gemma_train.metrics.progress import Progress
from gemma_train.metrics.recorder import Recorder


class Observer:
    """Records and shows a run's steps `start_step` + 1 to `total_steps`; a context manager.

    Of many processes one is `active` and writes; the others only keep the clock. `device_peak` is
    the FLOP/s of one of `devices`, None where it is not known: MFU is then left out. `began` is the
    reading of `time.perf_counter` at which the life began, as `goodput.process_start` finds it.
    """

    def __init__(
        self,
        folder: str,
        *,
        start_step: int,
        total_steps: int,
        tokens_per_step: int,
        flops_per_token: float,
        devices: int,
        device_peak: float | None,
        tensorboard: bool,
        active: bool,
        began: float | None = None,
    ) -> None:
        self.clock = StepClock(tokens_per_step, began=began)
        self._start_step = self._step = start_step
        self._lost, self._is_account_due = 0.0, True
        self._flops_per_token, self._devices, self._peak = flops_per_token, devices, device_peak
        self._pending: tuple[int, Mapping[str, Any]] | None = None
        self._recorder = Recorder(folder, start_step, tensorboard) if active else None
        earlier = self._recorder.accounts if self._recorder else []
        self._life = 1 + max((line["life"] for line in earlier), default=0)
        self._progress = Progress(total_steps, start_step) if active else None

    def step(self, step: int, scalars: Mapping[str, Any]) -> dict[str, Any]:
        """Take in a step that the device has begun, and record and show the one before it.

        The clock ticks when a step's scalars have arrived, not when it was sent. Returns the
        figures of the one before, with its number as `step`; `{}` where there is none.
        """
        finished = self._finish_pending()
        self._pending = (step, scalars)
        return finished

    def _finish_pending(self) -> dict[str, Any]:
        if self._pending is None:
            return {}
        (step, scalars), self._pending = self._pending, None
        line = {name: float(value) for name, value in scalars.items()}
        line |= self.clock.tick()
        if (speed := line.get("tokens_per_second")) is not None:
            line["model_flops_per_second"] = speed * self._flops_per_token
            share = model_flops_utilization(
                line["model_flops_per_second"], self._devices, self._peak
            )
            if share is not None:
                line["model_flops_utilization"] = share
        if self._recorder and self._progress:
            self._recorder.record(step, line)
            self._progress.update(step, line)
        self._step = step
        if self._is_account_due:
            self._account()
            self._is_account_due = False
        return {"step": step, **line}

    def _account(self) -> Mapping[str, Any]:
        """Record what the life took so far: after its first step, after a pause, and at its end.

        Returns the line written; `{}` where another process writes.
        """
        if self._recorder:
            scalars = goodput.account(
                self.clock.ledger.seconds,
                life=self._life,
                from_step=self._start_step,
                lost=self._lost,
            )
            self._recorder.record(self._step, scalars, kind="goodput")
            return self._recorder.write_pending()  # a kill loses none of it
        return {}

    def evaluation(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record what an evaluation found, and say it."""
        if self._recorder and self._progress:
            self._recorder.record(step, scalars, kind="evaluation")
            self._recorder.flush()
            found = ", ".join(f"{name} {value:,.4g}" for name, value in scalars.items())
            self._progress.say(f"step {step:,}: held-out {found}")

    def event(self, step: int, what: str) -> None:
        """Record something that happened after a step, in words, and say it."""
        if self._recorder:
            self._recorder.record(step, {"what": what}, kind="event")
            self._recorder.flush()
        self.say(f"after step {step:,}: {what}")

    def flush(self) -> dict[str, Any]:
        """Wait for the last step, write and show it: before what is not a step, and at the end.

        The step that follows is recorded with an account of the life so far. Returns as `step`.
        """
        finished = self._finish_pending()
        self._is_account_due = True
        if self._recorder:
            self._recorder.flush()
        return finished

    def go_back(self, step: int) -> None:
        """The run goes on from an earlier step: the record of later ones is dropped, as lost work.

        Called where their state is given up, before the next step.
        """
        self.flush()
        self._account()
        self._step = step
        if self._recorder:
            self._recorder.go_back(step)
            self._lost = self._recorder.accounts[-1][goodput.LOST]

    def say(self, text: str) -> None:
        """Print a line above the progress."""
        if self._progress:
            self._progress.say(text)

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            for part in (self._recorder, self._progress):
                if part is not None:
                    opened.enter_context(part)
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._conclude(says=error is None)
        finally:
            self._opened.__exit__(kind, error, traceback)

    def _conclude(self, *, says: bool) -> None:
        """Record the life's last account; say what all lives took where it ended well."""
        mine = self._account()
        if self._recorder:
            found = Goodput.of([*self._recorder.accounts, mine])
            if found and says:
                self.say(found.told)
