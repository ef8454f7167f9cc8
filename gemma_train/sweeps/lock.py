"""One sweep at a time in a folder: a lock that its running child holds too.

A sweep that was killed at once leaves its child at work; two processes in one run's folder would
spoil it. The lock goes with the last process that has it open, however that ends.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from gemma_train.errors import UserError

LOCK = ".lock"


class Lock:
    """A lock that is held; its descriptor is for children to inherit."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.tell()

    def tell(self, *children: int) -> None:
        """Write into the file which processes hold it."""
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, " ".join(map(str, (os.getpid(), *children))).encode(), 0)


@contextlib.contextmanager
def alone(folder: str) -> Iterator[Lock]:
    """Hold the folder's lock. Raises `UserError` with the processes that hold it already."""
    file = Path(folder).expanduser() / LOCK
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            numbers = file.read_text(errors="replace").split()
            raise UserError(
                f"folder {folder!r} is being worked on by process {' and '.join(numbers)}, a sweep "
                "and its run: let them end, or end them, then run this again"
            ) from None
        yield Lock(descriptor)
    finally:
        os.close(descriptor)
