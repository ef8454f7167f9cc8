"""Writes that are whole or absent, whoever else writes."""

import errno
import hashlib
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from etils import epath

from gemma_train import storage
from gemma_train.errors import Damaged, Stalled, UserError


def test_many_writers_of_one_file_leave_one_of_their_contents_whole(tmp_path):
    target = epath.Path(tmp_path / "shared.txt")
    contents = [f"{number} " * (1 + 997 * number % 5_000) for number in range(400)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda content: storage.write_whole(target, content), contents))
    assert target.read_text() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["shared.txt"]


def test_a_reader_among_writers_never_sees_a_part(tmp_path):
    target = epath.Path(tmp_path / "shared.bin")
    contents = [bytes([number]) * (1 + 8_000 * number) for number in range(8)]
    storage.write_whole(target, contents[0])
    with ThreadPoolExecutor(4) as threads:
        done = [
            threads.submit(storage.write_whole, target, contents[turn % 8]) for turn in range(300)
        ]
        while not all(one.done() for one in done):
            assert target.read_bytes() in contents
        for one in done:
            one.result()


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch):
    target = epath.Path(tmp_path / "kept.txt")
    storage.write_whole(target, "old")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no room"):
        patch.setattr(type(target), "replace", _refuse)
        storage.write_whole(target, "new")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


@pytest.fixture
def without_gcsfs(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


@pytest.mark.parametrize("reach", [storage.path, storage.matching])
def test_a_bucket_that_nothing_reaches_is_told_with_what_would(reach, without_gcsfs):
    with pytest.raises(UserError) as refused:
        reach("gs://bucket/run")
    assert str(refused.value) == (
        "'gs://bucket/run' is in a bucket, and gcsfs is not installed: pip install -e '.[gcs]'"
    )


@pytest.mark.parametrize("name", ["gs:/bucket/run", "s3://bucket/run", "https://host/run"])
def test_what_only_looks_like_a_bucket_is_no_local_folder(name):
    with pytest.raises(UserError, match="is neither local nor in a bucket: give a local path"):
        storage.path(name)


def test_a_colon_alone_is_a_name(without_gcsfs):
    assert str(storage.path("runs/a:b")) == "runs/a:b"
    assert str(storage.path("a:b")) == "a:b"


def test_parts_that_killed_writers_left_are_removed_once_they_are_old(tmp_path):
    names = (".a.bin.0.writing", ".b.bin.1.writing", ".teacher_sum", "c.writing")
    for name in names:
        (tmp_path / name).touch()
        old = time.time() - (3500 if name.startswith(".b") else 3700)
        os.utime(tmp_path / name, (old, old))
    storage.remove_abandoned(epath.Path(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {*names[1:]}
    storage.remove_abandoned(epath.Path(tmp_path / "nowhere"))


def _refuse(*_: object) -> None:
    raise OSError("no room")


class Failing:
    """A function that raises an error so many times, and then gives its value."""

    def __init__(self, error: Exception, times: int, function=lambda *_: "given"):
        self.error, self.times, self.function, self.calls = error, times, function, 0

    def __call__(self, *words: object) -> object:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return self.function(*words)


def of_library(module: str, **fields: object) -> Exception:
    """An error as a library of buckets raises it."""
    error = type("BucketError", (Exception,), {"__module__": module})("the bucket said\n so")
    vars(error).update(fields)
    return error


def system_error(number: int) -> OSError:
    return OSError(number, os.strerror(number), "a/file")


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The seconds that would have been slept."""
    found: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", found.append)
    return found


TRANSIENT = [
    *map(system_error, (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENETUNREACH)),
    ConnectionError("reset"),
    TimeoutError(),
    of_library("gcsfs.retry", code=503),
    of_library("gcsfs.retry", code="429"),
    of_library("aiohttp.client_exceptions"),
    of_library("aiohttp.client_exceptions", status=500),
    of_library("google.auth.exceptions", retryable=True),
]
LASTING = [
    *map(system_error, (errno.ENOENT, errno.EACCES, errno.ENOSPC, errno.EDQUOT, errno.EROFS)),
    OSError("of no number"),
    ValueError("none of a disk"),
    of_library("gcsfs.retry", code=404),
    of_library("gcsfs.retry", code="403"),
    of_library("aiohttp.client_exceptions", status=401),
    of_library("google.auth.exceptions", retryable=False),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
@pytest.mark.parametrize("times", [1, 4])
def test_what_fails_for_a_moment_is_asked_for_again(error, times, waits, caplog):
    function = Failing(error, times)
    assert storage.patiently(function) == "given"
    assert (function.calls, len(waits)) == (times + 1, times)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == times and not any("\n" in line for line in told)
    assert told[0].startswith("storage: ") and told[0].endswith("(try 2 of 5)")
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_what_does_not_recover_is_raised_as_it_is_within_a_minute(waits):
    function = Failing(system_error(errno.EIO), 99)
    with pytest.raises(OSError, match="a/file") as raised:
        storage.patiently(function)
    assert raised.value is function.error
    assert function.calls == 5
    assert 30 < sum(waits) < 60
    assert all(later > 1.4 * sooner for sooner, later in pairwise(waits))


def test_waits_have_jitter_and_tries_can_be_chosen(waits):
    for _ in range(20):
        storage.patiently(Failing(ConnectionError(), 1), tries=2, first_wait_seconds=0.5)
    assert len({round(one, 6) for one in waits}) > 10
    assert all(0.5 <= one <= 1.0 for one in waits)
    with pytest.raises(ConnectionError):
        storage.patiently(Failing(ConnectionError(), 1), tries=1)


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_what_stays_so_is_raised_at_once(error, waits, caplog):
    function = Failing(error, 1)
    with pytest.raises(type(error)) as raised:
        storage.patiently(function)
    assert raised.value is error
    assert (function.calls, waits, caplog.records) == (1, [], [])


def test_an_error_of_another_kind_ends_the_tries(waits):
    errors = iter([system_error(errno.EIO), system_error(errno.ENOSPC), ConnectionError()])

    def function() -> None:
        raise next(errors)

    with pytest.raises(OSError, match="No space left"):
        storage.patiently(function)
    assert len(waits) == 1


def test_small_files_are_written_and_read_patiently(tmp_path, waits, monkeypatch):
    target = epath.Path(tmp_path / "x")
    kind, cure = type(target), "mend it"
    failing = Failing(system_error(errno.EIO), 2, kind.replace)
    with monkeypatch.context() as patch:
        patch.setattr(kind, "replace", lambda *words: failing(*words))
        storage.write_whole(target, b"abc")
    assert failing.calls == 3
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    sha256 = hashlib.sha256(b"abc").hexdigest()
    for read in (
        lambda: storage.read_bytes(target, cure) == b"abc",
        lambda: storage.checked_bytes(target, sha256, cure) == b"abc",
    ):
        failing = Failing(system_error(errno.ESTALE), 2, kind.read_bytes)
        with monkeypatch.context() as patch:
            patch.setattr(kind, "read_bytes", lambda *words, f=failing: f(*words))
            assert read()
        assert failing.calls == 3
    failing = Failing(system_error(errno.ETIMEDOUT), 2, kind.open)
    with monkeypatch.context() as patch:
        patch.setattr(kind, "open", lambda *words: failing(*words))
        assert storage.sha256(target) == sha256
    assert failing.calls == 3


def test_a_full_disk_is_told_at_once(tmp_path, waits, monkeypatch):
    target = epath.Path(tmp_path / "x")
    failing = Failing(system_error(errno.ENOSPC), 1)
    monkeypatch.setattr(type(target), "write_bytes", failing)
    with pytest.raises(OSError, match="No space left"):
        storage.write_whole(target, b"abc")
    assert (failing.calls, waits) == (1, [])
    assert not list(tmp_path.iterdir())


def test_a_stale_descriptor_is_opened_anew(tmp_path, waits, monkeypatch):
    (tmp_path / "x").write_bytes(b"abcdef")
    files, opened, opens = storage.OpenFiles(), [], os.open
    failing = Failing(system_error(errno.ESTALE), 1, os.pread)
    monkeypatch.setattr("os.open", lambda *words: opened.append(words[0]) or opens(*words))
    monkeypatch.setattr("os.pread", failing)
    name = str(tmp_path / "x")
    assert files.read(name, 2, 3, "mend it") == b"cde"
    assert files.read(name, 4, 30, "mend it") == b"ef"
    assert (opened, len(waits)) == ([name, name], 1)


@pytest.mark.parametrize(
    ("number", "kind", "told"),
    [
        (errno.EIO, Damaged, "'FILE' cannot be read (Input/output error): mend it"),
        (errno.ENOENT, Damaged, "'FILE' is missing: mend it"),
        (
            errno.ESTALE,
            Stalled,
            "'FILE' cannot be read (Stale file handle), 5 times: start again when its disk or "
            "network is well",
        ),
        (
            errno.EACCES,
            UserError,
            "'FILE' cannot be read (Permission denied): let this user read it, or name another",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line_of_its_kind(
    tmp_path, waits, monkeypatch, number, kind, told
):
    monkeypatch.setattr("os.pread", Failing(system_error(number), 99))
    (tmp_path / "x").touch()
    with pytest.raises(UserError) as raised:
        storage.OpenFiles().read(str(tmp_path / "x"), 0, 1, "mend it")
    assert type(raised.value) is kind
    assert str(raised.value) == told.replace("FILE", str(tmp_path / "x"))


@pytest.mark.parametrize(
    ("number", "kind", "tries"),
    [(errno.ENOENT, Damaged, 1), (errno.ESTALE, Stalled, 5), (errno.EACCES, UserError, 1)],
)
def test_a_size_that_cannot_be_looked_at_is_a_missing_file_only_where_it_is(
    tmp_path, waits, monkeypatch, number, kind, tries
):
    file, failing = epath.Path(tmp_path / "x"), Failing(system_error(number), 99)
    monkeypatch.setattr(type(file), "stat", failing)
    with pytest.raises(UserError) as raised:
        storage.check_size(file, 3, "mend it")
    assert type(raised.value) is kind
    assert failing.calls == tries
