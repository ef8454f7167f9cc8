"""The end of a process that needs no Python: stacks, then an exit, even where the GIL is held.

The stacks come from faulthandler's own thread. Its exit has the code 1; the code asked for comes
from a POSIX timer (timer_create(2), SIGEV_THREAD) whose function is the C library's `_exit`. Where
there is no such timer (outside Linux), the exit is faulthandler's.
"""

import ctypes
import faulthandler
import sys
from typing import TextIO

MONOTONIC = 1  # <time.h>, on Linux
IN_A_THREAD = 2  # SIGEV_THREAD
WRITING_SECONDS = 2.0  # that stacks have, before the exit: the stream may be blocked too


class _Event(ctypes.Structure):
    """struct sigevent of 64-bit Linux, with the fields of SIGEV_THREAD: 64 bytes."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("rest", ctypes.c_byte * 32),
    )


class LastResort:
    """Ends the process with `exit_code` at the time last set, unless it is put off again."""

    def __init__(self, exit_code: int, stream: TextIO) -> None:
        self._stream = stream
        self._library = ctypes.CDLL(None) if _has_timers() else None
        self._timer = ctypes.c_void_p()
        if self._library is not None:
            end = ctypes.cast(self._library._exit, ctypes.c_void_p).value
            event = _Event(value=exit_code, notify=IN_A_THREAD, function=end)
            made = self._library.timer_create(
                MONOTONIC, ctypes.byref(event), ctypes.byref(self._timer)
            )
            if made != 0:  # the system's limit of timers is reached
                self._library = None

    def put_off(self, seconds: float) -> None:
        """Let the end come in so many seconds, instead of when it was to come before."""
        alone = self._library is None
        faulthandler.dump_traceback_later(max(seconds, 0.001), file=self._stream, exit=alone)
        self._set(seconds + WRITING_SECONDS)

    def call_off(self) -> None:
        """Let there be no end."""
        faulthandler.cancel_dump_traceback_later()
        self._set(0.0)
        if self._library is not None:
            self._library.timer_delete(self._timer)
            self._library = None

    def _set(self, seconds: float) -> None:
        """Set the timer, once; 0 stops it."""
        if self._library is not None:
            whole = int(seconds)
            # struct itimerspec: the interval, then the first time, in seconds and nanoseconds.
            times = (ctypes.c_long * 4)(0, 0, whole, int((seconds - whole) * 1e9))
            self._library.timer_settime(self._timer, 0, times, None)


def _has_timers() -> bool:
    """Whether this is a Linux whose structures are those above."""
    return sys.platform == "linux" and ctypes.sizeof(ctypes.c_void_p) == 8
