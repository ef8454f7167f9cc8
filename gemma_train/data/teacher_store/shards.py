"""A teacher's targets on disk: shards of encoded rows, and what they were made with.

    targets-00000.bin     records of `codec`, end to end
    targets-00000.rows    little-endian int64 triples: dataset, row, where its record ends
    targets-00000.json    the `Head`, counts and checksums; a shard without it is not finished
    teacher.json          the `Description`, written when all shards are there

A shard is whole or absent, and which rows stand in it follows from the config alone: writers that
know nothing of each other fill one folder, and what a killed one finished stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import NamedTuple

import numpy as np
from etils import epath

from gemma_train import sidecar, storage
from gemma_train.errors import require
from gemma_train.sidecar import Count, Positive

FORMAT_VERSION = 4
SIDECAR = "teacher.json"
AGAIN = "remove that file and run gemma-train teacher again"
# Which rows a finished shard holds nothing else says: the store is put together once more.
_LOST = "restore it, or remove it and teacher.json and repeat the commands that wrote the store"
_INDEX = np.dtype("<i8")
_ENTRY = 3  # numbers a row in targets-*.rows
_MOST_DATASETS, _MOST_ROWS = 1 << 16, 1 << 44  # of a store, and of each


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What makes a target what it is. The parameters' sum and number are None where not known."""

    tokenizer_sha256: str
    vocabulary: Positive
    sequence_length: Positive
    sampler: str
    temperature: float
    seed: Count
    teacher: str  # the folder of its weights, as the config named it
    parameters_sha256: str | None
    parameters: Count | None
    dtype: str  # that it ran in
    encoder_sha256: str | None = None  # of the images that it saw; None of text alone
    images_per_row: Positive | None = None  # room for them, by which rows are cut


# How a config, where it has them, calls the fields of an origin.
_NAMES = {
    "tokenizer_sha256": "tokenizer",
    "vocabulary": "model.vocabulary",
    "sequence_length": "data.sequence_length",
    "sampler": "loss.sampler",
    "temperature": "loss.temperature",
    "seed": "loss.seed",
    "parameters_sha256": "teacher's parameters (SHA-256)",
    "parameters": "teacher's number of parameters",
    "dtype": "loss.teacher.dtype",
    "encoder_sha256": "images' encoder (SHA-256)",
    "images_per_row": "data.images.per_row",
}


@dataclass(frozen=True, kw_only=True)
class TaughtDataset:
    """A dataset that rows were taken from."""

    path: str
    sha256: str  # of its dataset.json


@dataclass(frozen=True, kw_only=True)
class Order:
    """What decides which row stands in which shard."""

    shuffle_seed: Count
    weights: tuple[float, ...]  # of the sources of the mixture
    places: tuple[Count | None, ...]  # of each source's dataset among the taught ones, if it is
    shard_rows: Positive


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """The datasets of a run that are taught, and the order in which it meets their rows."""

    datasets: tuple[TaughtDataset, ...]
    order: Order


@dataclass(frozen=True, kw_only=True)
class Head:
    """What all shards of one pass have in common."""

    origin: Origin
    lesson: Lesson


@dataclass(frozen=True, kw_only=True)
class TargetShard:
    """One shard's counts and checksums."""

    rows: Count
    tokens: Count  # that have targets
    bytes: Count  # of targets-*.bin
    targets_sha256: str
    rows_sha256: str


@dataclass(frozen=True, kw_only=True)
class Note:
    """What a finished shard says of itself."""

    head: Head
    shard: TargetShard


@dataclass(frozen=True, kw_only=True)
class Description:
    """The sidecar: what a store holds and what made it."""

    head: Head
    stream_rows: Count  # of a run's stream in this order: so far it needs nothing else
    dataset_rows: tuple[Count, ...]  # of each dataset, that are here
    shards: tuple[TargetShard, ...]

    def total(self, count: str) -> int:
        """The sum of `rows`, `tokens` or `bytes` over the shards."""
        return sum(getattr(shard, count) for shard in self.shards)


class ShardFiles(NamedTuple):
    """The three files of a shard."""

    targets: epath.Path
    rows: epath.Path
    note: epath.Path


def shard_files(folder: str, number: int) -> ShardFiles:
    """Where a shard of a store is, or would be."""
    stem = storage.path(folder) / f"targets-{number:05d}"
    return ShardFiles(*(stem.with_suffix(suffix) for suffix in (".bin", ".rows", ".json")))


def write_shard(
    folder: str, number: int, head: Head, *, rows: np.ndarray, records: Sequence[bytes], tokens: int
) -> None:
    """Write a shard of `rows`, (dataset, row) pairs, and their records; its note comes last."""
    files = shard_files(folder, number)
    files.note.unlink(missing_ok=True)
    ends = np.cumsum([len(record) for record in records])
    index = np.concatenate([rows, ends[:, None]], axis=1).astype(_INDEX).tobytes()
    content = b"".join(records)
    storage.write_whole(files.targets, content)
    storage.write_whole(files.rows, index)
    shard = TargetShard(
        rows=len(rows),
        tokens=tokens,
        bytes=len(content),
        targets_sha256=sha256(content).hexdigest(),
        rows_sha256=sha256(index).hexdigest(),
    )
    sidecar.write(files.note, Note(head=head, shard=shard), FORMAT_VERSION)


def read_note(folder: str, number: int) -> Note | None:
    """What a shard says of itself, or None for one that is not finished."""
    file = shard_files(folder, number).note
    if not file.exists():
        return None
    note = sidecar.read(file, Note, FORMAT_VERSION, AGAIN)
    _check_teacher(file, note.head)
    return note


def read_rows(folder: str, number: int, shard: TargetShard, *, cure: str = _LOST) -> np.ndarray:
    """int64 [rows, 3]: dataset, row, end of its record. Raises `UserError` where it is damaged."""
    file = shard_files(folder, number).rows
    content = storage.checked_bytes(file, shard.rows_sha256, cure)
    require(
        len(content) == shard.rows * _ENTRY * _INDEX.itemsize,
        f"{str(file)!r} has {len(content):,} bytes, {shard.rows:,} rows would take "
        f"{shard.rows * _ENTRY * _INDEX.itemsize:,}: {cure}",
    )
    rows = np.frombuffer(content, _INDEX).reshape(shard.rows, _ENTRY)
    known, sizes = rows[:, :2], np.diff(rows[:, 2], prepend=0)
    require(
        bool(((known >= 0) & (known < (_MOST_DATASETS, _MOST_ROWS))).all() and (sizes >= 0).all())
        and int(rows[-1:, 2].sum()) == shard.bytes,
        f"{str(file)!r} does not say where the records of {shard.bytes:,} bytes end: {cure}",
    )
    return rows


def row_keys(rows: np.ndarray) -> np.ndarray:
    """int64 [n]: one number for each row of [n, 2 or more] of (dataset, row), in their order."""
    return rows[:, 0] * _MOST_ROWS + rows[:, 1]


def check_size(folder: str, number: int, shard: TargetShard) -> None:
    """Raise `UserError` unless a shard's records are there in full; reads none."""
    file = shard_files(folder, number).targets
    storage.check_size(
        file, shard.bytes, AGAIN if file.exists() else "run gemma-train teacher again"
    )


def verify(folder: str) -> None:
    """Read every shard and compare its checksums. Raises `UserError`."""
    for number, shard in enumerate(read_description(folder).shards):
        check_size(folder, number, shard)
        read_rows(folder, number, shard)
        storage.check_sha256(shard_files(folder, number).targets, shard.targets_sha256, AGAIN)


def write_description(folder: str, description: Description) -> None:
    """Make the shards a store."""
    sidecar.write(storage.path(folder) / SIDECAR, description, FORMAT_VERSION)


def read_description(folder: str) -> Description:
    """Read the sidecar. Raises `UserError` when it is missing, garbled or of another version."""
    file = storage.path(folder) / SIDECAR
    require(
        file.exists(),
        f"{folder!r} holds no finished teacher store (no {SIDECAR}): run gemma-train teacher",
    )
    description = sidecar.read(file, Description, FORMAT_VERSION, AGAIN)
    _check_teacher(file, description.head)
    return description


def disagreements(there: Origin, here: Origin) -> list[str]:
    """'field X there, Y here' of every field that differs; what is not known here is not compared.

    A teacher is its parameters, whatever folder they lie in.
    """
    return [
        f"{_NAMES[name]} {getattr(there, name)!r} there, {getattr(here, name)!r} here"
        for name in (field.name for field in fields(Origin) if field.name != "teacher")
        if getattr(here, name) not in (None, getattr(there, name))
    ]


def check_origin(folder: str, there: Origin, here: Origin) -> None:
    """Raise `UserError`, naming both values, unless all that is known here agrees."""
    found = disagreements(there, here)
    require(
        not found,
        f"teacher store {folder!r} is not the config's ({'; '.join(found[:3])}): make the config "
        "agree, or name another loss.teacher.folder",
    )


def _check_teacher(file: epath.Path, head: Head) -> None:
    """Raise `UserError` unless what is written says of which parameters its teacher is."""
    require(
        None not in (head.origin.parameters_sha256, head.origin.parameters),
        f"{str(file)!r} is garbled (it does not say of which parameters its teacher is): {AGAIN}",
    )
