"""Readers that do what none may do, to see that each is caught."""

import os
import signal
import time
from pathlib import Path

from gemma_train.errors import UserError
from tests.fuzz.reader import Reader

_HOARD: list[bytearray] = []


class _Multiline(UserError):
    """Whose message is not made one line."""

    def __init__(self) -> None:
        Exception.__init__(self, "one\ntwo")


def _reader(name: str, fault) -> Reader:
    whole = b'{"a": [1, 2]}' * 4

    def read(folder: Path) -> None:
        file = folder / "file"
        if file.is_file() and file.read_bytes() == whole:
            return
        fault()

    return Reader(name=name, make=lambda folder: (folder / "file").write_bytes(whole), read=read)


def _refuse() -> None:
    raise UserError("the file is damaged")


def _raise() -> None:
    raise ValueError("not caught")


def _multiline() -> None:
    raise _Multiline()


def _wait() -> None:
    time.sleep(60)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _leave() -> None:
    os._exit(0)


def _ask() -> None:
    bytearray(2 << 30)


def _hide() -> None:
    try:
        bytearray(2 << 30)
    except MemoryError as error:
        raise UserError("the file is too large") from error


def _hoard() -> None:
    _HOARD.append(bytearray(os.urandom(1 << 20)) * 200)


READERS = {
    name: _reader(name, fault)
    for name, fault in (
        ("good", _refuse),
        ("raising", _raise),
        ("multiline", _multiline),
        ("waiting", _wait),
        ("dying", _kill),
        ("leaving", _leave),
        ("greedy", _ask),
        ("hiding", _hide),
        ("hoarding", _hoard),
    )
}
