"""A source that gives no answer: the wait ends, the source is named, and the process can end."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gemma_train.data.batching import Batches, BatchSource, read_ahead
from gemma_train.data.config import DataConfig, TokenSource
from gemma_train.data.example import Layout, Row
from gemma_train.data.pipeline import batches
from gemma_train.data.timed import TimedIterator
from gemma_train.errors import Stalled

ROOT = Path(__file__).parents[2]
SECOND = 1 / 60  # in minutes


class Sleeping:
    """Rows of which one does not come for a while."""

    def __init__(self, late: int, seconds: float):
        self.late, self.seconds = late, seconds

    def fill(self, index: int, row: Row) -> None:
        if index == self.late:
            time.sleep(self.seconds)
        row.tokens[:] = index

    def place(self, index: int) -> str:
        return f"row {index} of the sleeper"


def reading(late: int, seconds: float, **changes) -> Batches:
    config = DataConfig(tokenizer="none", train=(TokenSource(path="none"),), sequence_length=4)
    config = dataclasses.replace(config, **changes)
    source = BatchSource(
        rows=Sleeping(late, seconds),
        batch_rows=2,
        batch_indices=(0, 1),
        batches=10,
        layout=Layout(length=4),
    )
    return read_ahead(source, config)


@pytest.mark.parametrize("threads", [0, 2])
def test_a_source_that_sleeps_is_named_with_its_row_and_the_seconds(threads):
    with reading(5, 3.0, read_threads=threads, timeout_minutes=0.5 * SECOND) as stream:
        assert [next(stream).tokens_bt[0, 0] for _ in range(2)] == [0, 2]
        began = time.monotonic()
        with pytest.raises(Stalled) as raised:
            next(stream)
        assert 0.4 < time.monotonic() - began < 2.5
    assert str(raised.value) == (
        "no batch came for 0.5 seconds (data.timeout_minutes), reading row 5 of the sleeper: see "
        "whether its disk or network is well, and start again"
    )
    assert raised.value.exit_code == 5
    assert time.monotonic() - began < 2.5  # closing does not wait for it


def test_who_waits_on_gets_the_batch_that_was_late():
    with reading(3, 1.0, read_threads=0, timeout_minutes=0.3 * SECOND) as stream:
        found, stalls = [], 0
        while len(found) < 10:
            try:
                found.append(int(next(stream).tokens_bt[0, 0]))
            except Stalled:
                stalls += 1
        assert found == list(range(0, 20, 2)) and 1 <= stalls <= 4
        assert list(stream) == []


def test_a_worker_process_that_sleeps_is_told_by_what_its_batch_is_of_and_ended():
    before = set(multiprocessing.active_children())
    stream = reading(0, 600.0, worker_processes=1, timeout_minutes=8 * SECOND)
    with pytest.raises(Stalled, match=r"for 8 seconds .*row 0 of the sleeper, row 1 of the sleep"):
        next(stream)
    began = time.monotonic()
    stream.close()
    assert time.monotonic() - began < 10
    assert not set(multiprocessing.active_children()) - before


def test_a_worker_process_that_is_killed_is_told():
    before = set(multiprocessing.active_children())
    with reading(9, 600.0, worker_processes=1, read_threads=0) as stream:
        next(stream)
        (worker,) = set(multiprocessing.active_children()) - before
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(Stalled, match=r"died \(.* exit code -9\), reading row \d of the sleep"):
            for _ in range(5):
                next(stream)


def test_a_mistake_where_an_iterator_begins_comes_out_of_next():
    def begin():
        raise ValueError("no beginning")

    iterator = TimedIterator(begin, seconds=5, told=str)
    with pytest.raises(ValueError, match="no beginning"):
        next(iterator)
    iterator.close()
    assert list(iterator) == []


def test_an_iterator_that_is_forgotten_ends_its_thread():
    iterator = TimedIterator(lambda: iter(range(3)), seconds=5, told=str)
    thread = iterator._thread
    assert list(iterator) == [0, 1, 2]
    del iterator
    thread.join(5)
    assert not thread.is_alive()


PROGRAM = """
import os, sys
from pathlib import Path
from gemma_train.commands import command_line
from gemma_train.data.config import DataConfig, TokenSource
from gemma_train.data.pipeline import batches

def read():
    tokenizer, folder, threads, workers = sys.argv[1:]
    config = DataConfig(
        tokenizer=tokenizer, train=(TokenSource(path=folder),), sequence_length=16, batch_rows=4,
        read_threads=int(threads), worker_processes=int(workers), timeout_minutes=4 / 60,
    )
    with batches(config, start_row=0, batch_indices=range(4)) as stream:
        while True:
            next(stream)

if __name__ == "__main__":
    command_line._verb = lambda name: lambda words: read()
    sys.exit(command_line.run(["read"]))
"""


@pytest.mark.parametrize(("threads", "workers"), [(0, 0), (2, 0), (1, 1)])
def test_a_process_whose_file_hangs_ends_with_one_line_and_its_own_code(
    write_dataset, made_documents, tokenizer, tmp_path, threads, workers
):
    """The file is a pipe that nobody writes into: opening it never returns, as on a dead mount."""
    folder = write_dataset(tmp_path / "made", made_documents())
    program, tokens = tmp_path / "program.py", tmp_path / "made" / "tokens-00000.bin"
    program.write_text(
        PROGRAM.replace(
            "    with batches(",
            "    import gemma_train.data.shards as shards\n"
            "    check = shards.check_sizes\n"
            "    def checked(*words):\n"
            "        check(*words)\n"
            f"        os.unlink({str(tokens)!r})\n"
            f"        os.mkfifo({str(tokens)!r})\n"
            "    shards.check_sizes = checked\n"
            "    with batches(",
        )
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, program, tokenizer.name, folder, str(threads), str(workers)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 5, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("gemma-train:")]
    assert "no batch came for 4 seconds" in line and f"of dataset {folder!r}" in line
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 40


def test_no_thread_is_left_by_streams_that_are_read_to_their_end_or_closed(config):
    before = set(threading.enumerate())
    for _ in range(3):
        with batches(config, start_row=0, batch_indices=[0]) as stream:
            next(stream)
    assert not {one for one in set(threading.enumerate()) - before if one.name == "batches"}
