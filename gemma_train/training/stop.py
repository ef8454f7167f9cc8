"""Ctrl-C and SIGTERM as a request: the loop saves and ends; Ctrl-C after that ends at once.

Many processes end at one step: jax's coordination service takes the SIGTERM that any of them gets,
and the first Ctrl-C, which it does not know, is made one.
"""

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

import jax
from jax.experimental import multihost_utils

from gemma_train.signals import handled


class Stopped(Exception):
    """What was under way was left for the request; the state is that of the last step."""


def stopping_for(say: Callable[[str], None]) -> Callable[[str], None]:
    """What a `MaintenanceNotice` is to tell: a machine that goes away ends the run in good time."""

    def tell(notice: str) -> None:
        say(f"notice from Compute Engine: {notice}")
        _request()

    return tell


def _request() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class StopRequest:
    """While entered, SIGINT and SIGTERM ask for an end instead of killing the process."""

    def __init__(self) -> None:
        self._requested = self._at_once = False
        self._polls = 0
        self._alone = jax.process_count() == 1

    def check(self) -> None:
        """Raise `Stopped` where one process alone is asked to end: between parts of a long work.

        Of many none may leave what all are at: they end at the next step.
        """
        self._end_at_once()
        if self._alone and self._requested:
            raise Stopped

    def agreed(self) -> bool:
        """Whether all processes end after this step; each calls it after every step."""
        self._end_at_once()
        if self._alone:
            return self._requested
        self._polls += 1  # no step's number: that may fall, and all would wait for it to come again
        return multihost_utils.reached_preemption_sync_point(self._polls)

    def __enter__(self) -> Self:
        numbers = (signal.SIGINT, signal.SIGTERM) if self._alone else (signal.SIGINT,)
        self._handled = handled(numbers, self._ask)
        self._handled.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._handled.__exit__(*error)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        # SIGTERM may follow a notice, or be sent twice.
        self._at_once |= self._requested and number == signal.SIGINT
        self._requested = True
        self._end_at_once()
        if not self._alone:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends at once, native code or not
            _request()

    def _end_at_once(self) -> None:
        """Raise what a second Ctrl-C is: once more where a callback of native code swallowed it."""
        if self._at_once:
            raise KeyboardInterrupt
