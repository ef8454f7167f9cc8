"""Google's notice that a machine is about to be taken away: asked for while a run goes on.

Compute Engine's metadata server answers a question when its value changes. A run that hears of it
can save in time, before SIGTERM comes, or instead of it. Elsewhere than on Compute Engine nothing
is asked, and no name looked up. Source: Google's pages "Monitor and plan for a host maintenance
event", "Query VM metadata" (waiting for changes) and "Spot VMs" (preempted).
"""

import http.client
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Self

import tenacity

HOST_VARIABLE = "GCE_METADATA_HOST"  # as Google's own libraries read it: host, or host:port
HOST = "metadata.google.internal"
PRODUCT = Path("/sys/class/dmi/id/product_name")  # what the firmware says the machine is
ROOT = "/computeMetadata/v1/instance/"
FLAVOR = ("Metadata-Flavor", "Google")  # of a question, and of an answer to be believed
# What is asked, and the answers that are notices; all others are not.
NOTICES = {
    "maintenance-event": ("TERMINATE_ON_HOST_MAINTENANCE",),  # a machine that migrates goes on
    "preempted": ("TRUE",),
}
CONNECT_SECONDS = 5.0
WAIT_SECONDS = 60  # that the server may hold a question back, before it is asked anew
PAUSE_SECONDS = 1.0  # between questions, whatever the answers are
LONGEST_BACKOFF_SECONDS = 60.0


class _Answer(NamedTuple):
    value: str
    tag: str  # of this value: the next question is answered when there is another


class MaintenanceNotice:
    """While entered, calls `tell` once, from a thread of its own, when a notice arrives.

    `tell` is given what the server says: one of `NOTICES`, "preempted" for its TRUE. A server that
    gives no answer is asked again, ever more seldom; whatever it does, the run is not held up.
    """

    def __init__(self, tell: Callable[[str], None], *, host: str | None = None) -> None:
        self._tell, self._host = tell, host or metadata_host()
        self._done, self._telling = threading.Event(), threading.Lock()

    @property
    def asks(self) -> bool:
        """Whether there is a server to ask."""
        return self._host is not None

    def __enter__(self) -> Self:
        for question in NOTICES if self.asks else ():
            name = f"notice of {question}"
            threading.Thread(target=self._watch, args=(question,), name=name, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()  # a question held back is not waited for

    def _watch(self, question: str) -> None:
        tag = ""
        patiently = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type((OSError, http.client.HTTPException)),
            wait=tenacity.wait_exponential(max=LONGEST_BACKOFF_SECONDS),
            sleep=tenacity.sleep_using_event(self._done),
            stop=tenacity.stop_when_event_set(self._done),
            retry_error_callback=lambda state: None,
        )
        while not self._done.is_set():
            answer = patiently(self._ask, question, tag)
            if answer is None:
                return
            if answer.value in NOTICES[question]:
                self._notice(question if answer.value == "TRUE" else answer.value)
                return
            tag = answer.tag
            self._done.wait(PAUSE_SECONDS)

    def _notice(self, notice: str) -> None:
        with self._telling:
            if not self._done.is_set():
                self._done.set()
                self._tell(notice)

    def _ask(self, question: str, tag: str) -> _Answer:
        """The value now or, with the `tag` of one, the value after it, if one comes in time.

        Raises `OSError` or `HTTPException` where there is no answer, or not the server's.
        """
        wait = f"?wait_for_change=true&timeout_sec={WAIT_SECONDS}&last_etag={tag}" if tag else ""
        connection = http.client.HTTPConnection(self._host or "", timeout=CONNECT_SECONDS)
        try:
            connection.connect()
            if connection.sock is not None and tag:
                connection.sock.settimeout(WAIT_SECONDS + CONNECT_SECONDS)
            connection.request("GET", ROOT + question + wait, headers=dict([FLAVOR]))
            response = connection.getresponse()
            if response.status != http.client.OK or response.getheader(FLAVOR[0]) != FLAVOR[1]:
                raise http.client.HTTPException(f"{question}: answered {response.status}")
            value = response.read(1024).decode(errors="replace").strip()
            return _Answer(value, response.getheader("ETag", ""))
        finally:
            connection.close()


def metadata_host(product: Path = PRODUCT) -> str | None:
    """Where the metadata server is; None elsewhere than on Compute Engine."""
    if named := os.environ.get(HOST_VARIABLE):
        return named
    try:
        return HOST if product.read_text().strip() == "Google Compute Engine" else None
    except (OSError, ValueError):
        return None
