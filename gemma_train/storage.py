"""Local and gs:// paths through one door (etils.epath); writes that are whole or absent; checks.

What a disk or a network refuses for a moment is asked for again: `patiently`.
"""

import contextlib
import errno
import fcntl
import glob
import hashlib
import importlib.util
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import PurePosixPath
from weakref import finalize

import tenacity
from etils import epath

from gemma_train.errors import Damaged, Stalled, UserError, require

_SCHEME = re.compile(r"\w+:/")
_REACH_BUCKETS = ("gcsfs", "tensorflow")  # either is enough for epath
_ABANDONED_SECONDS = 3600
_MOST_OPEN = 64  # files of one `OpenFiles`
_TRIES = 5  # of `patiently`, about 40 seconds in all
_FIRST_WAIT_SECONDS = 1.0  # before the second; three times as long before each that follows
_BUCKET_LIBRARIES = ("gcsfs", "aiohttp", "google")
_BUSY = (408, 425, 429)  # statuses of HTTP that ask for another try, as do 500 and above
_MOMENTARY = {
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EAGAIN,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EPIPE,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENETRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENOTCONN,
}
_NO_SPACE = "no space left on the device: free some, or choose another place, and run it again"
_log = logging.getLogger(__name__)


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


def files_below(folder: epath.Path, within: str = "") -> Iterator[tuple[str, epath.Path]]:
    """(name, file) of every file below a folder (epath's own glob refuses to look for them)."""
    for child in folder.iterdir():
        if child.is_dir():
            yield from files_below(child, f"{within}{child.name}/")
        else:
            yield f"{within}{child.name}", child


def is_transient(error: BaseException) -> bool:
    """Whether asking a disk, a network or a bucket once more may find it well.

    Not where a file is missing, may not be read, or has no room: that stays so.
    """
    if type(error).__module__.partition(".")[0] in _BUCKET_LIBRARIES:
        status = str(getattr(error, "code", getattr(error, "status", "")))
        if status.isdecimal():
            return int(status) >= 500 or int(status) in _BUSY
        return bool(getattr(error, "retryable", True))  # google.auth says so itself
    if not isinstance(error, OSError):
        return False
    return isinstance(error, ConnectionError | TimeoutError) or error.errno in _MOMENTARY


def patiently[Result](
    function: Callable[[], Result],
    *,
    tries: int = _TRIES,
    first_wait_seconds: float = _FIRST_WAIT_SECONDS,
) -> Result:
    """What `function` gives, called again after each `is_transient` error, at most `tries` times.

    The waits grow three times each, with jitter, so that many processes do not come back at once;
    each is told in a line. The last error is raised as it is, and every other kind at once.
    """
    try:
        return function()  # by far the most often; a `Retrying` costs ten times a small read
    except Exception as error:
        if tries <= 1 or not is_transient(error):
            raise
        failed = [error]

    def call() -> Result:
        if failed:
            raise failed.pop()
        return function()

    def told(state: tenacity.RetryCallState) -> None:
        assert state.outcome is not None and state.next_action is not None
        words = " ".join(str(state.outcome.exception()).split())
        _log.warning(
            "storage: %s: trying again in %.1f s (try %d of %d)",
            words or type(state.outcome.exception()).__name__,
            state.next_action.sleep,
            state.attempt_number + 1,
            tries,
        )

    return tenacity.Retrying(
        stop=tenacity.stop_after_attempt(tries),
        wait=tenacity.wait_exponential_jitter(
            multiplier=first_wait_seconds, exp_base=3, jitter=first_wait_seconds
        ),
        retry=tenacity.retry_if_exception(is_transient),
        before_sleep=told,
        reraise=True,
    )(call)


def write_whole(target: epath.Path, content: str | bytes) -> None:
    """Write a small file so that a reader sees the old content or the new, never a part.

    Of several writers of one file, on one machine or on many, the last one's content stays.
    """
    patiently(lambda: _write_whole(target, content))


def _write_whole(target: epath.Path, content: str | bytes) -> None:
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


def read_bytes(file: epath.Path, cure: str) -> bytes:
    """What a small file holds. Raises `UserError` where it cannot be read, as `OpenFiles` does."""
    try:
        return patiently(file.read_bytes)
    except OSError as error:
        raise unreadable(str(file), error, cure) from None


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
    return patiently(lambda: _sha256(file))


def _sha256(file: epath.Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_size(file: epath.Path, size: int, cure: str) -> None:
    """Raise `Damaged` unless a file of so many bytes is there; reads none of them."""
    found = _length(file, cure)
    if found != size:
        raise Damaged(
            f"{str(file)!r} has {found:,} bytes, it should have {size:,}: {cure}", str(file)
        )


def check_sha256(file: epath.Path, expected: str, cure: str) -> None:
    """Read a file. Raises `Damaged` unless it is there and has this SHA-256."""
    try:
        found = sha256(file)
    except OSError as error:
        raise unreadable(str(file), error, cure) from None
    _compare(file, found, expected, cure)


def checked_bytes(file: epath.Path, expected: str, cure: str) -> bytes:
    """What a small file holds, read once. Raises `Damaged` as `check_sha256` does."""
    content = read_bytes(file, cure)
    _compare(file, hashlib.sha256(content).hexdigest(), expected, cure)
    return content


def _length(file: epath.Path, cure: str) -> int:
    try:
        return patiently(file.stat).length
    except OSError as error:  # `exists` would take every one for a missing file
        raise unreadable(str(file), error, cure) from None


def _compare(file: epath.Path, found: str, expected: str, cure: str) -> None:
    if found != expected:
        raise Damaged(
            f"{str(file)!r} is damaged (its SHA-256 is {found[:12]}..., it should be "
            f"{expected[:12]}...): {cure}",
            str(file),
        )


class OpenFiles:
    """Reads of parts of local files, the latest of which stay open.

    For any number of threads; a copy in another process opens its own.
    """

    def __init__(self) -> None:
        self._opened = lru_cache(_MOST_OPEN)(_OpenFile)

    def __reduce__(self) -> tuple:
        return OpenFiles, ()

    def read(self, name: str, start: int, size: int, cure: str) -> bytes:
        """Bytes [start, start + size) of a file, or fewer where it ends.

        Raises `Damaged` where it is gone or its disk cannot read it, `Stalled` where a network
        does not answer, and `UserError` where this user may not read it.
        """
        try:
            return patiently(lambda: self._read(name, start, size))
        except OSError as error:
            raise unreadable(name, error, cure) from None

    def _read(self, name: str, start: int, size: int) -> bytes:
        file = self._opened(name)  # held while it is read: another thread may push it out
        try:
            return os.pread(file.descriptor, size, start)
        except OSError:
            self._opened.cache_clear()  # the next try may need another descriptor, as after ESTALE
            raise


def unreadable(name: str, error: OSError, cure: str) -> UserError:
    """What a reader is to be told: `Damaged`, `Stalled`, or what a user can mend."""
    if error.errno in (errno.EISDIR, errno.ENOTDIR):
        return Damaged(f"{name!r} is a folder, not a file: {cure}", name)
    told = f"{name!r} cannot be read ({error.strerror or error})"
    if error.errno == errno.ENOENT:
        return Damaged(f"{name!r} is missing: {cure}", name)
    if error.errno == errno.EIO:
        return Damaged(f"{told}: {cure}", name)
    if is_transient(error):
        return Stalled(f"{told}, {_TRIES} times: start again when its disk or network is well")
    return UserError(f"{told}: let this user read it, or name another")


def refusal(error: Exception) -> UserError | None:
    """In one line, what the system or a bucket refused; None for an error of another kind."""
    kind, words = (Stalled if is_transient(error) else UserError), " ".join(str(error).split())
    if type(error).__module__.partition(".")[0] in _BUCKET_LIBRARIES:
        return kind(f"the bucket cannot be reached: {words}")
    if not isinstance(error, OSError):
        return UserError(_NO_SPACE) if "No space left on device" in words else None
    reason = _NO_SPACE if error.errno == errno.ENOSPC else error.strerror or words
    return kind(f"{error.filename}: {reason}" if error.filename else reason)


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
