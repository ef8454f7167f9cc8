"""Seals: the size and SHA-256 of every file of a checkpoint, by the process that wrote it.

    _CHECKPOINT_METADATA, state/...   what Orbax wrote and committed
    seal-00000-of-00002.json          what process 0 wrote of it
    seal-00001-of-00002.json          what process 1 wrote of it

Orbax restores a checkpoint with a flipped bit in it without a word. A checkpoint is whole where all
its seals are there, and every file is as its seal says. Seals are written last, each by its writer.
"""

import re
from dataclasses import dataclass

from etils import epath

from gemma_train import sidecar, storage
from gemma_train.errors import Damaged
from gemma_train.sidecar import Count, Name, Positive

FORMAT_VERSION = 1
_SEAL = re.compile(r"seal-(\d{5})-of-(\d{5})\.json")
_BEING_WRITTEN = ".seal-"
_WRITER = re.compile(r"process_(\d+)$")  # how Orbax names what another process than the first wrote
_CURE = "go on from another checkpoint"


@dataclass(frozen=True, kw_only=True)
class SealedFile:
    """A file as it was when the checkpoint was finished."""

    name: Name  # its path in the checkpoint, with /
    size: Count  # bytes
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Seal:
    """What one of `processes` wrote of a checkpoint."""

    process: Count
    processes: Positive
    files: tuple[SealedFile, ...]


def seal(checkpoint: epath.Path, process: int = 0, processes: int = 1) -> None:
    """Read what this process wrote of a committed checkpoint, and write its seal."""
    files = tuple(
        SealedFile(name=name, size=file.stat().length, sha256=storage.sha256(file))
        for name, file in sorted(storage.files_below(checkpoint))
        if not is_seal(name) and _writer(name, processes) == process
    )
    record = Seal(process=process, processes=processes, files=files)
    name = f"seal-{process:05d}-of-{processes:05d}.json"
    sidecar.write(checkpoint / name, record, FORMAT_VERSION)


def is_seal(name: str) -> bool:
    """Whether a file of a checkpoint is one of its seals, and none of its contents."""
    return bool(_SEAL.fullmatch(name)) or name.startswith(_BEING_WRITTEN)


def contents(checkpoint: epath.Path) -> list[SealedFile]:
    """The files by all seals. Raises `UserError` where one is missing, or says what cannot be."""
    inside = storage.patiently(lambda: list(checkpoint.iterdir()))
    names = [one.name for one in inside if _SEAL.fullmatch(one.name)]
    if not names:
        raise Damaged(f"{str(checkpoint)!r} has no seal: it is damaged, or older than seals are")
    seals = [sidecar.read(checkpoint / name, Seal, FORMAT_VERSION, _CURE) for name in sorted(names)]
    if [(one.process, one.processes) for one in seals] != [
        (number, len(seals)) for number in range(len(seals))
    ]:
        raise Damaged(f"{str(checkpoint)!r} has seals {', '.join(sorted(names))}: one is missing")
    sealed = [file for one in seals for file in one.files]
    for file in sealed:
        if file.name.startswith("/") or ".." in file.name.split("/") or "\0" in file.name:
            raise Damaged(f"{str(checkpoint)!r} has a seal of {file.name!r}, which is not in it")
    if not sealed:
        raise Damaged(f"{str(checkpoint)!r} has a seal of no file")
    return sealed


def damage(checkpoint: epath.Path, read: slice = slice(None)) -> str:
    """What is wrong with a checkpoint, naming the first such file; "" where it is whole.

    Every file's size is looked at, and of the files in `read` every byte. A seal of another format
    version counts: one flipped bit makes it so. Raises `UserError` where that cannot be told:
    storage gives no answer, or a file may not be read.
    """
    try:
        sealed = contents(checkpoint)
        for file in sealed:
            storage.check_size(checkpoint / file.name, file.size, _CURE)
        for file in sealed[read]:
            storage.check_sha256(checkpoint / file.name, file.sha256, _CURE)
    except (Damaged, sidecar.OtherVersion) as error:
        return str(error).removesuffix(f": {_CURE}")
    except OSError as error:
        told = storage.unreadable(str(error.filename or checkpoint), error, _CURE)
        if isinstance(told, Damaged):
            return str(told).removesuffix(f": {_CURE}")
        raise told from None
    return ""


SIZES_ALONE = slice(0)  # of no file every byte


def _writer(name: str, processes: int) -> int:
    """The process that wrote a file: the first one all that bears no other's number."""
    marks = [match for part in name.split("/") if (match := _WRITER.search(part))]
    return int(marks[0][1]) % processes if marks else 0
