"""Work of unknown length: a spinner with the time on a terminal, a line now and then elsewhere."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner

from gemma_train.metrics.wording import duration

LINE_SECONDS = 30.0


@contextlib.contextmanager
def waiting(
    what: str, console: Console | None = None, *, every_seconds: float = LINE_SECONDS
) -> Iterator[None]:
    """Say `what` is going on, and for how long: at every redraw, or off a terminal now and then.

    The work must let go of the interpreter lock, as compilers do.
    """
    console = console or Console()
    began = time.monotonic()

    def told() -> str:
        return f"{what}: {duration(time.monotonic() - began)}"

    if console.is_terminal:
        spinner = Spinner("dots", text=told())
        with Live(console=console, transient=True, get_renderable=lambda: _now(spinner, told)):
            yield
        return
    done = threading.Event()

    def say() -> None:
        console.print(f"{what} ...", markup=False, highlight=False, soft_wrap=True)
        while not done.wait(every_seconds):
            console.print(told(), markup=False, highlight=False, soft_wrap=True)

    teller = threading.Thread(target=say, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


def _now(spinner: Spinner, told: Callable[[], str]) -> Spinner:
    spinner.update(text=told())
    return spinner
