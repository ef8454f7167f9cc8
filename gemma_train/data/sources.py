"""Documents out of files: plain text, JSONL and Parquet, local or gs://; gzip if the name says so.

A record that cannot be read is skipped, counted and reported by file and record number: a corpus
of a billion pages always has some. A source that gives no document is the user's mistake.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from etils import epath

from gemma_train import storage
from gemma_train.data.recipe import TextSource
from gemma_train.errors import require

_EXAMPLES = 3
_UNREADABLE = (ValueError, OSError, EOFError, zlib.error)  # also JSON, UTF-8, gzip and Arrow errors
_COMPRESSION = 4  # gzip and Parquet, roughly


@dataclass
class Skipped:
    """What a source gave that is no document: counts, and the first few by file and record."""

    malformed: int = 0
    short: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, file: epath.Path, record: int, reason: object) -> None:
        """Count one malformed record; `record` counts from 1, 0 is the whole file."""
        self.malformed += 1
        if len(self.examples) < _EXAMPLES:
            what = f"record {record}" if record else "file"
            self.examples.append(f"{file} {what}: {' '.join(str(reason).split())}")


def source_files(source: TextSource) -> list[epath.Path]:
    """The files of a source, pattern by pattern, none twice. Raises `UserError` when none match."""
    files = []
    for pattern in source.files:
        found = storage.matching(pattern)
        require(bool(found), f"source {source.name!r}: no file matches {pattern!r}")
        files += found
    return list(dict.fromkeys(files))


def estimated_bytes(source: TextSource, files: list[epath.Path]) -> int:
    """About how many bytes of text the files hold, from their sizes alone."""
    size = sum(
        file.stat().length * (_COMPRESSION if file.suffix in (".gz", ".parquet") else 1)
        for file in files
    )
    return min(size, source.maximum_bytes or size)


def documents(
    source: TextSource, files: Iterable[epath.Path], skipped: Skipped
) -> Iterator[tuple[str, int]]:
    """The documents of these files in order, each with its size in bytes of UTF-8."""
    left = source.maximum_bytes
    for file in files:
        for record, raw in _records(file, source, skipped):
            try:
                text = _text(raw, source)
                size = len(text.encode())
            except ValueError as reason:
                skipped.add(file, record, reason)
                continue
            if len(text) < source.minimum_characters:
                skipped.short += 1
                continue
            if left is not None and (left := left - size) < 0:
                return
            yield text, size


def _records(
    file: epath.Path, source: TextSource, skipped: Skipped
) -> Iterator[tuple[int, object]]:
    """Raw records with their numbers from 1; a file that breaks off is reported as one."""
    record = 0
    try:
        with file.open("rb") as stream:
            content = gzip.GzipFile(fileobj=stream) if file.suffix == ".gz" else stream
            match source.format:
                case "text":
                    yield 1, content.read()
                case "jsonl":
                    for record, line in enumerate(content, 1):
                        if line.strip():
                            yield record, line
                case "parquet":
                    yield from enumerate(_column(content, source.text_field), 1)
    except _UNREADABLE as reason:
        skipped.add(file, record and record + 1, reason)


def _column(stream, name: str) -> Iterator[object]:
    """The values of a text column as bytes, a thousand rows in memory at a time."""
    import pyarrow  # here, since it takes a moment to load and most recipes need none
    from pyarrow import parquet

    file = parquet.ParquetFile(stream)
    _check_field(name, file.schema_arrow.names)
    for batch in file.iter_batches(batch_size=1_000, columns=[name]):
        yield from batch.column(0).cast(pyarrow.large_binary()).to_pylist()


def _text(raw: Any, source: TextSource) -> str:
    """The text of a raw record. Raises `ValueError` with the reason when there is none."""
    if source.format == "jsonl":
        record = json.loads(raw)
        if not isinstance(record, dict):
            raise ValueError(f"is a {type(record).__name__}, not an object")
        _check_field(source.text_field, record)
        raw = record[source.text_field]
    if isinstance(raw, bytes):
        raw = raw.decode("utf-8-sig")
    if not isinstance(raw, str):
        found = type(raw).__name__
        raise ValueError(f"field {source.text_field!r} is {found}, not text")
    return raw


def _check_field(name: str, present: Iterable[str]) -> None:
    if name not in present:
        raise ValueError(f"has no field {name!r}, but {', '.join(map(repr, present)) or 'none'}")
