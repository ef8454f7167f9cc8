"""Local and gs:// paths through one door (etils.epath); writes that are whole or absent; checks."""

import contextlib
import fcntl
import glob
import hashlib
import importlib.util
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import PurePosixPath
from weakref import finalize

from etils import epath

from gemma_train.errors import Damaged, UserError, require

_SCHEME = re.compile(r"\w+:/")
_REACH_BUCKETS = ("gcsfs", "tensorflow")  # either is enough for epath
_ABANDONED_SECONDS = 3600
_MOST_OPEN = 64  # files of one `OpenFiles`


def path(name: str) -> epath.Path:
    """The path of a local file or folder, or of an object such as `gs://bucket/name`.

    Raises `UserError` for other places, and for a bucket where nothing is installed to reach it.
    """
    if _SCHEME.match(name):
        require(
            name.startswith("gs://"),
            f"{name!r} is neither local nor in a bucket: give a local path, or gs://BUCKET/NAME",
        )
        require(
            any(map(importlib.util.find_spec, _REACH_BUCKETS)),
            f"{name!r} is in a bucket, and gcsfs is not installed: pip install -e '.[gcs]'",
        )
    return epath.Path(name).expanduser()


def existing(name: str, what: str) -> epath.Path:
    """`path(name)`, or a `UserError` that says which `what` (a noun phrase) is missing."""
    found = path(name)
    if not found.exists():
        raise UserError(f"{what} {name!r} does not exist")
    return found


def matching(pattern: str) -> list[epath.Path]:
    """The files that match a pattern such as `corpus/**/*.jsonl` or `gs://bucket/*.parquet`.

    Sorted by name. Raises `UserError` for `**` in a bucket, which would list all of it.
    """
    if "://" not in pattern:
        names = glob.iglob(os.path.expanduser(pattern), recursive=True)
        return [epath.Path(name) for name in sorted(filter(os.path.isfile, names))]
    wild = re.search(r"/[^/]*[*?\[]", pattern)
    if wild is None:
        return [file for file in [path(pattern)] if file.exists()]
    require("**" not in pattern, f"pattern {pattern!r}: name the folders, ** is for local files")
    return sorted(path(pattern[: wild.start()]).glob(pattern[wild.start() + 1 :]))


def write_whole(target: epath.Path, content: str | bytes) -> None:
    """Write a small file so that a reader sees the old content or the new, never a part.

    Of several writers of one file, on one machine or on many, the last one's content stays.
    """
    temporary = target.parent / f".{target.name}.{secrets.token_hex(8)}.writing"
    try:
        if isinstance(content, str):
            temporary.write_text(content)
        else:
            temporary.write_bytes(content)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_abandoned(folder: epath.Path) -> None:
    """Remove what killed `write_whole`s left in a folder: parts that are an hour old or more.

    A younger one may be another writer's, who is about to name it.
    """
    for file in folder.glob(".*.writing"):
        with contextlib.suppress(FileNotFoundError):
            if file.stat().mtime < time.time() - _ABANDONED_SECONDS:
                file.unlink()


@contextlib.contextmanager
def alone(folder: epath.Path) -> Iterator[None]:
    """Hold a local folder for this process; whatever ends it lets go. Raises `UserError` where
    another holds it."""
    with open(folder / "lock", "wb") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process writes to {str(folder)!r}: wait for its end, or stop it"
            ) from None
        yield


def sha256(file: epath.Path) -> str:
    """The hexadecimal SHA-256 of a file, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_size(file: epath.Path, size: int, cure: str) -> None:
    """Raise `UserError` unless a file of so many bytes is there; reads none of them."""
    require(file.exists(), f"{str(file)!r} is missing: {cure}")
    found = file.stat().length
    require(found == size, f"{str(file)!r} has {found:,} bytes, it should have {size:,}: {cure}")


def check_sha256(file: epath.Path, expected: str, cure: str) -> None:
    """Read a file. Raises `UserError` unless it is there and has this SHA-256."""
    require(file.exists(), f"{str(file)!r} is missing: {cure}")
    with _no_folder(file, cure):
        found = sha256(file)
    _compare(file, found, expected, cure)


def checked_bytes(file: epath.Path, expected: str, cure: str) -> bytes:
    """What a small file holds, read once. Raises `UserError` as `check_sha256` does."""
    require(file.exists(), f"{str(file)!r} is missing: {cure}")
    with _no_folder(file, cure):
        content = file.read_bytes()
    _compare(file, hashlib.sha256(content).hexdigest(), expected, cure)
    return content


@contextlib.contextmanager
def _no_folder(file: epath.Path, cure: str) -> Iterator[None]:
    try:
        yield
    except IsADirectoryError:
        raise Damaged(f"{str(file)!r} is a folder, not a file: {cure}") from None


def _compare(file: epath.Path, found: str, expected: str, cure: str) -> None:
    require(
        found == expected,
        f"{str(file)!r} is damaged (its SHA-256 is {found[:12]}..., it should be "
        f"{expected[:12]}...): {cure}",
    )


class OpenFiles:
    """Reads of parts of local files, the latest of which stay open.

    For any number of threads; a copy in another process opens its own.
    """

    def __init__(self) -> None:
        self._opened = lru_cache(_MOST_OPEN)(_OpenFile)

    def __reduce__(self) -> tuple:
        return OpenFiles, ()

    def read(self, name: str, start: int, size: int) -> bytes:
        """Bytes [start, start + size) of a file, or fewer where it ends."""
        file = self._opened(name)  # held while it is read: another thread may push it out
        return os.pread(file.descriptor, size, start)


class _OpenFile:
    def __init__(self, name: str):
        self.descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        finalize(self, os.close, self.descriptor)


def free_bytes(folder: epath.Path) -> int | None:
    """Free space below `folder` (its nearest existing parent), or None for object stores."""
    if "://" in str(folder):
        return None
    here = folder
    while not here.exists() and PurePosixPath(here) != PurePosixPath(here.parent):
        here = here.parent
    return shutil.disk_usage(here).free
