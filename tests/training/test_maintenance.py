"""Notices of a metadata server that stands on this machine's loopback, and answers by a script."""

import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest

from gemma_train.training import maintenance
from gemma_train.training.maintenance import HOST, MaintenanceNotice, metadata_host

TERMINATE = "TERMINATE_ON_HOST_MAINTENANCE"


class Server:
    """Its values may be changed, which answers whoever waits for that; it notes each question."""

    def __init__(self):
        self.values = {"maintenance-event": "NONE", "preempted": "FALSE"}
        self.failures = 0  # questions that it will not answer first
        self.flavor, self.asked, self.changed = "Google", [], threading.Condition()

    def set(self, question: str, value: str) -> None:
        with self.changed:
            self.values[question] = value
            self.changed.notify_all()

    def answer(self, question: str, waits_from: str | None) -> str:
        with self.changed:
            self.changed.wait_for(lambda: self.values[question] != waits_from, timeout=2)
            return self.values[question]


@pytest.fixture
def server(monkeypatch):
    """A server, found by the variable."""
    script = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            url = urlparse(self.path)
            question, words = url.path.rpartition("/")[2], parse_qs(url.query)
            script.asked.append((question, words, self.headers["Metadata-Flavor"]))
            if script.failures:
                script.failures -= 1
                return self.send_error(503)
            (tag,) = words.get("last_etag", [None])
            value = script.answer(question, tag if "wait_for_change" in words else None)
            self.send_response(200)
            self.send_header("Metadata-Flavor", script.flavor)
            self.send_header("ETag", value)
            self.end_headers()
            self.wfile.write(value.encode())

        def log_message(self, *words):
            """Nothing is printed."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{http.server_port}")
    monkeypatch.setattr(maintenance, "PAUSE_SECONDS", 0.01)
    yield script
    http.shutdown()
    http.server_close()


@contextmanager
def noticing():
    """(what was told, an event that is set by it) of a notice that is awaited."""
    told, heard = [], threading.Event()

    def tell(notice: str) -> None:
        told.append(notice)
        heard.set()

    with MaintenanceNotice(tell) as notice:
        assert notice.asks
        yield told, heard


@pytest.mark.parametrize(
    ("question", "value", "notice"),
    [
        ("maintenance-event", TERMINATE, TERMINATE),
        ("preempted", "TRUE", "preempted"),
    ],
)
def test_a_notice_that_arrives_is_told(server, question, value, notice):
    with noticing() as (told, heard):
        wait_until(lambda: sum("wait_for_change" in words for _, words, _ in server.asked) == 2)
        assert not told
        server.set(question, value)
        assert heard.wait(10) and told == [notice]
    assert {flavor for _, _, flavor in server.asked} == {"Google"}
    assert all(words["timeout_sec"] == ["60"] for _, words, _ in server.asked if words)


def test_a_notice_that_is_there_already_is_told_at_once(server):
    server.set("maintenance-event", TERMINATE)
    with noticing() as (told, heard):
        assert heard.wait(10) and told == [TERMINATE]


def test_two_notices_are_told_once(server):
    with noticing() as (told, heard):
        server.set("maintenance-event", TERMINATE)
        assert heard.wait(10)
        server.set("preempted", "TRUE")
        time.sleep(0.2)
        assert told == [TERMINATE]


def test_a_server_that_fails_is_asked_again(server, monkeypatch):
    monkeypatch.setattr(maintenance, "LONGEST_BACKOFF_SECONDS", 0.05)
    server.failures = 6
    server.set("preempted", "TRUE")
    with noticing() as (told, heard):
        assert heard.wait(10) and told == ["preempted"]
    assert len(server.asked) > 6


def test_a_stranger_on_that_address_is_not_believed(server, monkeypatch):
    monkeypatch.setattr(maintenance, "LONGEST_BACKOFF_SECONDS", 0.05)
    server.flavor = "Stranger"
    server.set("preempted", "TRUE")
    with noticing() as (told, _):
        wait_until(lambda: len(server.asked) > 4)
    assert told == []


def test_leaving_waits_for_no_question_and_tells_nothing_more(server):
    with noticing() as (told, _):
        wait_until(lambda: sum("wait_for_change" in words for _, words, _ in server.asked) == 2)
        began = time.monotonic()
    assert time.monotonic() - began < 1
    server.set("preempted", "TRUE")
    time.sleep(0.2)
    assert told == []


def test_elsewhere_nothing_is_asked_and_no_name_looked_up(monkeypatch, tmp_path):
    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
    monkeypatch.setattr(maintenance, "metadata_host", lambda: metadata_host(tmp_path / "none"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words: pytest.fail("a name was looked up"))
    before = threading.active_count()
    with MaintenanceNotice(lambda notice: pytest.fail(notice)) as notice:
        assert not notice.asks
        assert threading.active_count() == before


def test_compute_engine_is_known_by_its_firmware(monkeypatch, tmp_path):
    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
    product = tmp_path / "product_name"
    product.write_text("Google Compute Engine\n")
    assert metadata_host(product) == HOST
    product.write_text("Another Machine\n")
    assert metadata_host(product) is metadata_host(Path("/nowhere")) is None
    monkeypatch.setenv("GCE_METADATA_HOST", "here:80")
    assert metadata_host(product) == "here:80"


def wait_until(holds) -> None:
    """Wait for it, ten seconds at most, and fail then."""
    for _ in range(500):
        if holds():
            return
        time.sleep(0.02)
    raise AssertionError("waited in vain")
