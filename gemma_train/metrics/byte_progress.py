"""Progress of a long run over bytes: a bar on a terminal, a line every ten seconds elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

Advance = Callable[[int], None]
_SECONDS_BETWEEN_LINES = 10


@contextmanager
def progress(title: str, total_bytes: int) -> Iterator[Advance]:
    """Yields a function to call with the number of bytes that have been done since."""
    if Console().is_terminal:
        columns = ("{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, transient=True) as bar:
            task = bar.add_task(title, total=total_bytes)
            yield lambda count: bar.advance(task, count)
    else:
        yield _lines(title, total_bytes)


def _lines(title: str, total_bytes: int) -> Advance:
    done, due = 0, time.monotonic() + _SECONDS_BETWEEN_LINES

    def advance(count: int) -> None:
        nonlocal done, due
        done += count
        if time.monotonic() >= due:
            due = time.monotonic() + _SECONDS_BETWEEN_LINES
            print(f"{title}: {done / 1e6:,.0f} of about {total_bytes / 1e6:,.0f} MB", flush=True)

    return advance
