"""Seconds a step takes, tokens a second, and seconds spent waiting for data.

Evaluations and checkpoints pause the clock; the first step, which compiles, is reported apart.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gemma_train.metrics.goodput import Category, Ledger


class StepClock:
    """Measures the steps of a loop on the host; made just before the first step.

    The loop ticks once a step. `now` gives seconds from any origin and never goes back; `began` is
    its reading when the life began (None: now). Its ledger keeps what all of the time went to.
    """

    def __init__(
        self,
        tokens_per_step: int,
        now: Callable[[], float] = time.perf_counter,
        began: float | None = None,
    ) -> None:
        self._tokens_per_step = tokens_per_step
        self._now = now
        self._started = now()
        self._data_wait = 0.0
        self._is_first = True
        self.ledger = Ledger(now, self._started if began is None else began)
        self.ledger.turn("compile")

    def tick(self) -> dict[str, float]:
        """End a step and begin the next.

        Returns `seconds_per_step`, `tokens_per_second` and `data_wait_seconds` of that step; for
        the first one, which compiles, only `first_step_seconds` and `data_wait_seconds`.
        """
        now = self._now()
        seconds, data_wait = now - self._started, self._data_wait
        self._started, self._data_wait = now, 0.0
        if self._is_first:
            self._is_first = False
            self.ledger.turn("step")
            return {"first_step_seconds": seconds, "data_wait_seconds": data_wait}
        return {
            "seconds_per_step": seconds,
            "tokens_per_second": self._tokens_per_step / max(seconds, 1e-9),
            "data_wait_seconds": data_wait,
        }

    @contextmanager
    def paused(self, category: Category = "other") -> Iterator[None]:
        """Leave what happens inside (an evaluation, a checkpoint) out of the step's time."""
        begun = self._now()
        try:
            with self.ledger.within(category):
                yield
        finally:
            self._started += self._now() - begun

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count what happens inside as waiting for data; it stays part of the step's time."""
        begun = self._now()
        try:
            with self.ledger.within("data_wait"):
                yield
        finally:
            self._data_wait += self._now() - begun
