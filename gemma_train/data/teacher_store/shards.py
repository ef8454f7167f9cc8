"""A teacher's targets on disk: shards of encoded rows, and what they were made with.

    targets-00000.bin     records of `codec`, end to end
    targets-00000.rows    little-endian int64 triples: dataset, row, where its record ends
    targets-00000.json    the `Head`, counts and checksums; a shard without it is not finished
    teacher.json          the `Description`, written when all shards are there

A shard is whole or absent, and which rows stand in it follows from the config alone: writers that
know nothing of each other fill one folder, and what a killed one finished stays.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from hashlib import sha256
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np
from etils import epath

from gemma_train import storage
from gemma_train.errors import UserError, require

FORMAT_VERSION = 1
SIDECAR = "teacher.json"
AGAIN = "remove that file and run gemma-train teacher again"
# Which rows a finished shard holds nothing else says: the store is put together once more.
_LOST = "restore it, or remove it and teacher.json and repeat the commands that wrote the store"
_INDEX = np.dtype("<i8")
_ENTRY = 3  # numbers a row in targets-*.rows
_MOST_ROWS = 1 << 44  # of a dataset


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What makes a target what it is. The parameters' sum and number are None where not known."""

    tokenizer_sha256: str
    vocabulary: int
    sequence_length: int
    sampler: str
    temperature: float
    seed: int
    teacher: str  # the folder of its weights, as the config named it
    parameters_sha256: str | None
    parameters: int | None
    dtype: str  # that it ran in


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
}


@dataclass(frozen=True, kw_only=True)
class TaughtDataset:
    """A dataset that rows were taken from."""

    path: str
    sha256: str  # of its dataset.json


@dataclass(frozen=True, kw_only=True)
class Order:
    """What decides which row stands in which shard."""

    shuffle_seed: int
    weights: tuple[float, ...]  # of the sources of the mixture
    places: tuple[int | None, ...]  # of each source's dataset among the taught ones, if it is
    shard_rows: int


@dataclass(frozen=True, kw_only=True)
class Head:
    """What all shards of a folder have in common."""

    origin: Origin
    datasets: tuple[TaughtDataset, ...]
    order: Order


@dataclass(frozen=True, kw_only=True)
class TargetShard:
    """One shard's counts and checksums."""

    rows: int
    tokens: int  # that have targets
    bytes: int  # of targets-*.bin
    targets_sha256: str
    rows_sha256: str


@dataclass(frozen=True, kw_only=True)
class Description:
    """The sidecar: what a store holds and what made it."""

    head: Head
    stream_rows: int  # of a run's stream in this order: so far it needs nothing else
    dataset_rows: tuple[int, ...]  # of each dataset, that are here
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
    _write_json(files.note, head, {"shard": asdict(shard)})


def read_note(folder: str, number: int) -> tuple[Head, TargetShard] | None:
    """What a shard says of itself, or None for one that is not finished."""
    note = shard_files(folder, number).note
    if not note.exists():
        return None
    with _garbled(note, AGAIN):
        content = _read_json(note)
        return _head(content), _parsed(TargetShard, content["shard"])


def read_rows(folder: str, number: int, shard: TargetShard, *, cure: str = _LOST) -> np.ndarray:
    """int64 [rows, 3]: dataset, row, end of its record. Raises `UserError` where it is damaged."""
    file = shard_files(folder, number).rows
    require(file.exists(), f"shard {str(file)!r} is missing: {cure}")
    content = file.read_bytes()
    found = sha256(content).hexdigest()
    require(
        found == shard.rows_sha256,
        f"shard {str(file)!r} is damaged (its SHA-256 is {found[:12]}..., it should be "
        f"{shard.rows_sha256[:12]}...): {cure}",
    )
    require(
        len(content) == shard.rows * _ENTRY * _INDEX.itemsize,
        f"shard {str(file)!r} has {len(content):,} bytes, {shard.rows:,} rows would take "
        f"{shard.rows * _ENTRY * _INDEX.itemsize:,}: {cure}",
    )
    return np.frombuffer(content, _INDEX).reshape(shard.rows, _ENTRY)


def row_keys(rows: np.ndarray) -> np.ndarray:
    """int64 [n]: one number for each row of [n, 2 or more] of (dataset, row), in their order."""
    return rows[:, 0] * _MOST_ROWS + rows[:, 1]


def check_size(folder: str, number: int, shard: TargetShard) -> None:
    """Raise `UserError` unless a shard's records are there in full; reads none."""
    file = shard_files(folder, number).targets
    require(file.exists(), f"shard {str(file)!r} is missing: run gemma-train teacher again")
    found = file.stat().length
    require(
        found == shard.bytes,
        f"shard {str(file)!r} has {found:,} bytes, it should have {shard.bytes:,}: {AGAIN}",
    )


def verify(folder: str) -> None:
    """Read every shard and compare its checksums. Raises `UserError`."""
    for number, shard in enumerate(read_description(folder).shards):
        check_size(folder, number, shard)
        read_rows(folder, number, shard)
        file = shard_files(folder, number).targets
        found = storage.sha256(file)
        require(
            found == shard.targets_sha256,
            f"shard {str(file)!r} is damaged (its SHA-256 is {found[:12]}..., it should be "
            f"{shard.targets_sha256[:12]}...): {AGAIN}",
        )


def write_description(folder: str, description: Description) -> None:
    """Make the shards a store."""
    content = {
        "stream_rows": description.stream_rows,
        "dataset_rows": description.dataset_rows,
        "shards": [asdict(shard) for shard in description.shards],
    }
    _write_json(storage.path(folder) / SIDECAR, description.head, content)


def read_description(folder: str) -> Description:
    """Read the sidecar. Raises `UserError` when it is missing, garbled or of another version."""
    sidecar = storage.path(folder) / SIDECAR
    require(
        sidecar.exists(),
        f"{folder!r} holds no finished teacher store (no {SIDECAR}): run gemma-train teacher",
    )
    with _garbled(sidecar, AGAIN):
        content = _read_json(sidecar)
        return Description(
            head=_head(content),
            stream_rows=_parsed(int, content["stream_rows"]),
            dataset_rows=_parsed(tuple[int, ...], content["dataset_rows"]),
            shards=_parsed(tuple[TargetShard, ...], content["shards"]),
        )


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


def _write_json(file: epath.Path, head: Head, more: dict[str, Any]) -> None:
    content = {"format_version": FORMAT_VERSION, **asdict(head), **more}
    storage.write_whole(file, json.dumps(content, indent=1) + "\n")


def _read_json(file: epath.Path) -> dict[str, Any]:
    content = json.loads(file.read_text())
    if not isinstance(content, dict):
        raise ValueError(f"{content!r:.60} is no object")
    version = content["format_version"]
    require(
        version == FORMAT_VERSION,
        f"{str(file)!r} has format version {version}, this release reads {FORMAT_VERSION}: {AGAIN}",
    )
    return content


def _head(content: dict[str, Any]) -> Head:
    head = _parsed(Head, {field.name: content[field.name] for field in fields(Head)})
    if None in (head.origin.parameters_sha256, head.origin.parameters):
        raise ValueError("it does not say of which parameters its teacher is")
    return head


def _parsed(kind: Any, value: Any) -> Any:
    """JSON as a dataclass, a tuple or a plain value of this type; no number here is below 0."""
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        if not isinstance(value, dict):
            raise ValueError(f"{value!r:.60} is no {kind.__name__}")
        if other := sorted(value.keys() ^ hints.keys()):
            raise ValueError(f"{kind.__name__} lacks, or should not have, {', '.join(other)}")
        return kind(**{name: _parsed(hint, value[name]) for name, hint in hints.items()})
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{value!r:.60} is no list")
        return tuple(_parsed(get_args(kind)[0], item) for item in value)
    kinds = get_args(kind) or ((int, float) if kind is float else (kind,))
    if type(value) not in kinds or (isinstance(value, int | float) and not value >= 0):
        names = " or ".join(one.__name__ for one in kinds)
        raise ValueError(f"{value!r:.60} is no {names}" + " of 0 or more" * (str not in kinds))
    return value


@contextlib.contextmanager
def _garbled(file: epath.Path, cure: str) -> Iterator[None]:
    """Errors of a file that is not what it should be, in one line."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"{str(file)!r} is garbled (it has no {error}): {cure}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{str(file)!r} is garbled ({error}): {cure}") from None
