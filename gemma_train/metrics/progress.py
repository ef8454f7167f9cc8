"""One line that says how a run is going: a live bar on a terminal, plain lines elsewhere.

It is drawn by the loop's own call, at most a few times a second, and shows numbers that are
already on the host: it starts no thread and never waits for a device.
"""

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from gemma_train.metrics.wording import count, duration

REDRAW_SECONDS = 0.2


class Progress:
    """The progress of a loop from `start_step` to `total_steps`, as a context manager.

    Off a terminal a line is printed every `every_steps` steps if given, else every
    `every_seconds` seconds, and at the last step.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int,
        *,
        every_seconds: float = 10.0,
        every_steps: int | None = None,
        console: Console | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total_steps = total_steps
        self._every_seconds, self._every_steps = every_seconds, every_steps
        self._console = console or Console()
        self._now = now
        self._live: Live | None = None
        self._first: tuple[int, float] | None = None  # the first step seen, and when
        self._shown_step, self._shown_at = start_step, -float("inf")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Show `step` and its scalars, plain numbers such as `Recorder.record` returns.

        Names known: loss, learning_rate, tokens_per_second, seconds_per_step, data_wait_seconds,
        model_flops_utilization. Most calls return at once: it draws only when a line is due.
        """
        now = self._now()
        self._first = self._first or (step, now)
        if not self._is_due(step, now):
            return
        self._shown_step, self._shown_at = step, now
        parts = [*_parts(scalars), *self._time_left(step, now)]
        if self._live is None:
            self.say(" · ".join([f"step {step:,}/{self._total_steps:,}", *parts]))
        else:
            self._live.update(_bar(step, self._total_steps, parts), refresh=True)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _is_due(self, step: int, now: float) -> bool:
        if step >= self._total_steps:
            return True
        if self._live is not None:
            return now - self._shown_at >= REDRAW_SECONDS
        if self._every_steps is not None:
            return step - self._shown_step >= self._every_steps
        return now - self._shown_at >= self._every_seconds

    def _time_left(self, step: int, now: float) -> list[str]:
        """By the wall clock since the first step seen, so that compilation is left out."""
        assert self._first is not None
        first_step, first_at = self._first
        if step <= first_step or step >= self._total_steps:
            return []
        seconds = (now - first_at) / (step - first_step) * (self._total_steps - step)
        return [f"{duration(seconds)} left"]


def _parts(scalars: Mapping[str, Any]) -> list[str]:
    parts = []
    if (loss := scalars.get("loss")) is not None:
        parts.append(f"loss {loss:.4f}")
    if (learning_rate := scalars.get("learning_rate")) is not None:
        parts.append(f"lr {learning_rate:.1e}")
    if (speed := scalars.get("tokens_per_second")) is not None:
        parts.append(f"{count(speed)} tokens/s")
    if (seconds := scalars.get("seconds_per_step")) and "data_wait_seconds" in scalars:
        parts.append(f"data wait {scalars['data_wait_seconds'] / seconds:.0%}")
    if (utilization := scalars.get("model_flops_utilization")) is not None:
        parts.append(f"MFU {utilization:.1%}")
    return parts


def _bar(step: int, total_steps: int, parts: list[str]) -> Table:
    line = Table.grid(padding=(0, 1))
    for _ in range(3):
        line.add_column(no_wrap=True, overflow="ellipsis")
    line.add_row(
        ProgressBar(total=total_steps, completed=step, width=16),
        f"[bold]{step:,}[/bold]/{total_steps:,}",
        f"[dim]·[/dim] {' [dim]·[/dim] '.join(parts)}" if parts else "",
    )
    return line
