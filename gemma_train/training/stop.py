"""Ctrl-C and SIGTERM as a request: the loop saves and ends; a second Ctrl-C ends at once.

Many processes end at one step: jax's coordination service takes the SIGTERM that any of them gets.
"""

import signal
from types import FrameType, TracebackType
from typing import Self

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """While entered, SIGINT and SIGTERM ask for an end instead of killing the process."""

    def __init__(self) -> None:
        self._requested = False
        self._alone = jax.process_count() == 1

    def agreed(self, step: int) -> bool:
        """Whether all processes end after `step`; each calls it after every step."""
        if self._alone:
            return self._requested
        return multihost_utils.reached_preemption_sync_point(step)

    def __enter__(self) -> Self:
        numbers = (signal.SIGINT, signal.SIGTERM) if self._alone else ()
        self._before = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True
