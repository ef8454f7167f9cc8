"""An iterator that is waited for so long and no longer, whatever it hangs on.

It runs in a daemon thread, and so do the pools of threads that it starts: what waits for a disk
that gives no answer does not keep the process from its end.
"""

import contextlib
import multiprocessing
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import thread as pools
from typing import Any
from weakref import finalize

from gemma_train.errors import Stalled

_CLOSE_SECONDS = 30.0  # grain gives a worker process 25 to end by itself
_WORKERS = "grain-process-prefetch"  # how grain calls them

type _Answer[Item] = tuple[Item | None, BaseException | None]


class TimedIterator[Item](Iterator[Item]):
    """The items of the iterator that `begin` makes; one is asked for at a time.

    `told` says what is being read, for the `Stalled` that `next` raises when no item has come
    within `seconds`. `close` closes the iterator, if it can be closed, and ends all that it began.
    """

    def __init__(
        self, begin: Callable[[], Iterator[Item]], *, seconds: float, told: Callable[[], str]
    ) -> None:
        self._seconds, self._told = min(seconds, threading.TIMEOUT_MAX), told
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[_Answer[Item]] = queue.SimpleQueue()
        self._begun: list[Iterator[Item]] = []
        self._others = set(multiprocessing.active_children())
        self._is_waiting = self._is_closed = False
        self._thread = threading.Thread(
            target=_serve,
            args=(begin, self._begun, self._asked, self._answers),
            daemon=True,
            name="batches",
        )
        self._thread.start()
        finalize(self, self._asked.put, False)

    def __next__(self) -> Item:
        if self._is_closed:
            raise StopIteration
        if not self._is_waiting:  # else the last one asked for is still to come
            self._asked.put(True)
            self._is_waiting = True
        try:
            item, error = self._answers.get(timeout=self._seconds)
        except queue.Empty:
            raise Stalled(
                f"no batch came for {self._seconds:,g} seconds (data.timeout_minutes), reading "
                f"{self._told()}: see whether its disk or network is well, and start again"
            ) from None
        self._is_waiting = False
        if error is not None:
            try:
                raise error
            finally:
                del error  # it holds this frame, which holds it
        assert item is not None
        return item

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._asked.put(False)
        if not self._is_waiting:
            self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            self._abandon()

    def _abandon(self) -> None:
        """End what can be ended, and let the process end without the rest."""
        for child in set(multiprocessing.active_children()) - self._others:
            if child.name.startswith(_WORKERS):
                child.kill()
        for iterator in self._begun:
            closing = threading.Thread(target=_close, args=(iterator,), daemon=True)
            closing.start()
            closing.join(_CLOSE_SECONDS)
        waited_for = getattr(pools, "_threads_queues", {})  # at the end of the process
        for thread in [one for one in waited_for if one.daemon]:
            waited_for.pop(thread, None)


def _serve(
    begin: Callable[[], Iterator[Any]],
    begun: list[Iterator[Any]],
    asked: "queue.SimpleQueue[bool]",
    answers: "queue.SimpleQueue[_Answer[Any]]",
) -> None:
    """What the thread does; it does not know of the `TimedIterator`, which may be forgotten."""
    try:
        begun.append(begin())
    except BaseException as error:
        if asked.get():
            answers.put((None, error))
        return
    while asked.get():
        try:
            answers.put((next(begun[0]), None))
        except BaseException as error:
            answers.put((None, error))
    _close(begun[0])


def _close(iterator: Any) -> None:
    if hasattr(iterator, "close"):
        with contextlib.suppress(Exception):  # it may be in the middle of what hangs
            iterator.close()
