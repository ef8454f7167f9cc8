"""A run that hangs ends itself, with the stacks of its threads: a watchdog beside the loop.

A collective whose partner is gone waits for ever, in native code; chips are billed meanwhile. The
loop says that it is alive with each step; when it has said nothing for too long, the process ends
with the exit code of `Stalled`, and whoever started it starts it again.
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self, TextIO

from gemma_train import storage
from gemma_train.errors import Stalled, require
from gemma_train.metrics.wording import duration
from gemma_train.run_files import STACKS

PATIENT = 4  # times as long for what compiles: the first step, and whatever is `patient`
LOOKS = 20  # in the time allowed, at most one a second
GRACE = 3.0  # looks that the thread may be late, before the end comes without it


class Watchdog:
    """While entered, ends the process when `alive` is not called for `minutes`; 0 never does.

    Until the first call it waits `PATIENT` times as long, for the first step compiles. Stacks go to
    standard error and, where `folder` is local, to its `stacks-PROCESS.txt`. Threads of Python are
    shown; what native code does beneath them is not. Time in which the process is stopped, as by
    Ctrl-Z, counts; time in which the machine sleeps does not.
    """

    def __init__(self, minutes: float, folder: str, *, process: int = 0) -> None:
        require(minutes >= 0, f"watchdog minutes are {minutes}: choose 0 (off) or more")
        self._seconds, self._folder, self._process = 60.0 * minutes, folder, process
        self._patience, self._last = PATIENT, "its start"
        self._heard = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def alive(self, after: str = "a step") -> None:
        """Say that the run goes on, and after what: the message of an end names it."""
        self._heard, self._last, self._patience = time.monotonic(), after, 1

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Wait `PATIENT` times as long while this is entered: what is inside compiles, or is long.

        A call of `alive` within ends that patience; leaving counts as one.
        """
        self._heard, self._patience = time.monotonic(), PATIENT
        yield
        self.alive(self._last)

    def __enter__(self) -> Self:
        if self._seconds:
            self._heard = time.monotonic()
            self._put_off(self._left())
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        if self._seconds:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    @property
    def _look(self) -> float:
        """Seconds between looks."""
        return min(1.0, self._seconds / LOOKS)

    def _left(self) -> float:
        """Seconds until the end, if nothing is heard."""
        return self._heard + self._patience * self._seconds - time.monotonic()

    def _put_off(self, left: float) -> None:
        """The last resort, where a thread holds the interpreter's lock: stacks and exit code 1."""
        seconds = max(left, 0.0) + GRACE * self._look
        faulthandler.dump_traceback_later(seconds, file=_standard_error(), exit=True)

    def _watch(self) -> None:
        try:
            while not self._done.wait(self._look):
                left = self._left()
                self._put_off(left)
                if left <= 0:
                    self._end()
        except BaseException:
            faulthandler.cancel_dump_traceback_later()
            raise

    def _end(self) -> None:
        """The stacks, and the exit; should a stream or a disk be stuck too, faulthandler's is."""
        silent = duration(time.monotonic() - self._heard)
        line = (
            f"gemma-train: process {self._process}: nothing heard for {silent}, since "
            f"{self._last}: ended with exit code {Stalled.exit_code}; where its threads are:"
        )
        with suppress(OSError, ValueError):
            if "://" not in self._folder:
                file = storage.path(self._folder) / STACKS.format(self._process)
                file.parent.mkdir(parents=True, exist_ok=True)
                with open(file, "a") as stream:
                    _dump(stream, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")
        with suppress(OSError, ValueError):
            _dump(_standard_error(), line)
        os._exit(Stalled.exit_code)


def _dump(stream: TextIO, line: str) -> None:
    print(line, file=stream, flush=True)
    faulthandler.dump_traceback(stream)


def _standard_error() -> TextIO:
    """The process's own, for what stands in for `sys.stderr` may have no file; it may lack one."""
    return sys.__stderr__ or open(os.devnull, "w")
