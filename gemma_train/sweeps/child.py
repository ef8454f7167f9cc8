"""A command in a process of its own: its words in a log, Ctrl-C passed on to it, once each.

The child is in a process group of its own, so that a terminal's Ctrl-C reaches it by way of the
sweep alone: a second one would end it without saving.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self

from gemma_train.signals import handled
from gemma_train.sweeps.lock import Lock

LOOK_SECONDS = 0.2
TAIL_BYTES = 8192


class Interruption:
    """While entered, Ctrl-C, SIGTERM and a hangup go to the running child as SIGINT, remembered."""

    def __init__(self) -> None:
        self.requested = False
        self._child: subprocess.Popen | None = None

    def watch(self, child: subprocess.Popen | None) -> None:
        """The child to pass signals on to; None when it has ended."""
        self._child = child
        if self.requested and child is not None:
            child.send_signal(signal.SIGINT)

    def __enter__(self) -> Self:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which is what nohup asks for
            numbers.append(signal.SIGHUP)
        self._handled = handled(numbers, self._ask)
        self._handled.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._handled.__exit__(*error)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if self._child is not None:
            self._child.send_signal(signal.SIGINT)


def run_logged(
    command: Sequence[str],
    log: Path,
    *,
    lock: Lock,
    stop: Interruption,
    look: Callable[[], None],
) -> str | None:
    """Run a command to its end, its words added to `log`; `look` is called a few times a second.

    Returns None if it ended well, else how it ended. It inherits the lock.
    """
    with log.open("ab") as words:
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                process_group=0,
                pass_fds=(lock.descriptor,),
            )
        except OSError as error:
            return f"{command[0]} cannot be run: {error.strerror}"
    lock.tell(child.pid)
    stop.watch(child)
    code = None
    while code is None:
        try:
            code = child.wait(LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            look()
    stop.watch(None)
    lock.tell()
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}" if code else None


def last_line(log: Path, start: int = 0) -> str:
    """The last line with something in it that was written to `log` after byte `start`."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - TAIL_BYTES))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
